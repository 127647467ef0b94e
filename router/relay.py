"""Between client and node: what is sent on, what is passed back, and how a node's refusal is read."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import orjson

from common.catalog import Claim, NewRun
from common.errors import (
    AquatintError,
    CatalogUnavailable,
    EngineFailed,
    NoCapacity,
    NodeFailed,
    OutOfDeviceMemory,
    StorageFull,
)
from common.images_api import ImageRequest, events
from common.node_api import (
    ATTEMPT_HEADER,
    KEY_ID_HEADER,
    PLACES_HEADER,
    PUBLIC_URL_HEADER,
    REQUEST_ID_HEADER,
    REQUESTED_MODEL_HEADER,
    RUN_ID_HEADER,
    Holding,
)
from router.arrivals import Arrival
from router.body import Body
from router.placement import Ask
from router.wire import Answer, Broken, Patience, Sink
from router.wishes import AS_MOST, Wishes

BODY_SILENCE_S = 10.0
"""How long a node may let us wait for the body of a finished answer, all waits together: as long as for an answer to a look."""
LEAST_BYTES_PER_S = 64 * 1024
"""Of a body that keeps coming, however long it is: the slowest line that pictures are sent over. One that drips is given up."""
MAX_ANSWER_BYTES = 1024 * 1024 * 1024
"""Ten pictures of the largest size are a quarter of it."""
MAX_ERROR_BYTES = 64 * 1024
ERROR_SILENCE_S = 10.0
OF_THE_REQUEST = (400, 413, 415, 422, 499)
"""Statuses by which a node says that the request is wrong, or was cancelled: no other node would say otherwise. All others,
a 404 of a model that is there no more, a 401 or a redirect among them, are the node's own trouble."""
SHARED = (CatalogUnavailable, StorageFull)
"""Errors of what all nodes share: another would make the same pictures, and lose them the same way."""


class NotUnderstood(NodeFailed):
    """What a node answered is no error as nodes tell them."""


class Accepted(NamedTuple):
    """A request after every check the router makes: what is dispatched."""

    run_id: str
    request_id: str
    request: ImageRequest
    """With the model resolved and a seed."""
    requested_model: str | None
    ask: Ask
    key_id: str | None
    public_url: str
    arrived_s: float
    """When its request had come, on the monotonic clock: its place among those of its key."""
    label: str = "other"
    """The model as a metrics label: only names that nodes have told of."""
    claim: Claim | None = None
    """The idempotency key it came with."""
    recorded: bool = False
    """Its row is in the catalog already."""
    result_key: str | None = None
    """What its result can be found by when the same is asked for again."""
    wishes: Wishes = AS_MOST
    parent_id: str | None = None
    """The run that it is a part of."""
    whole: bool = False
    """Whether it must not be made in parts (any more)."""
    debug: bool = False
    """Whether its answer tells why it was made where it was made."""
    arrival: Arrival | None = None
    """Its way to the line, where those of its key wait for it."""
    lasting: bool = False
    """Whether the run outlives this dispatch: nobody waits for it here, and what may pass does not end it."""


@dataclass(slots=True)
class Reply:
    """What goes back to the client."""

    status: int
    headers: Mapping[str, str]
    body: Body
    pour: Callable[[Sink], Awaitable[bool]] | None = None
    """Moves as much of the body as it can past this process, before `body` gives what is left of it. Raises: SinkGone."""


def row_of(accepted: Accepted) -> NewRun:
    """The run's row in the catalog."""
    request = accepted.request
    assert request.model is not None
    return NewRun(
        id=accepted.run_id,
        task=str(request.task),
        model=request.model,
        requested_model=accepted.requested_model,
        prompt=request.prompt,
        request=request.to_json(),
        key_id=accepted.key_id,
        request_id=accepted.request_id,
        source="router",
        seed=request.seed,
        n=request.n,
        width_px=request.size.width_px if request.size else None,
        height_px=request.size.height_px if request.size else None,
        result_key=accepted.result_key,
        parent_id=accepted.parent_id,
    )


def may_pass(error: AquatintError) -> bool:
    """Whether the same run may succeed later: what no node can take may be taken by one that is added."""
    return isinstance(error, NoCapacity) or (error.status >= 500 and error.retryable is not False)


def node_headers(accepted: Accepted, attempt: int, places: int) -> dict[str, str]:
    """What a node is told beside the request itself. places: the most runs it may hold with this one."""
    headers = {
        RUN_ID_HEADER: accepted.run_id,
        REQUEST_ID_HEADER: accepted.request_id,
        ATTEMPT_HEADER: str(attempt),
        PLACES_HEADER: str(places),
        PUBLIC_URL_HEADER: accepted.public_url,
    }
    if accepted.key_id is not None:
        headers[KEY_ID_HEADER] = accepted.key_id
    if accepted.requested_model is not None:
        headers[REQUESTED_MODEL_HEADER] = accepted.requested_model.encode("ascii", "backslashreplace").decode()
    return headers


_PASSED_ON = (
    "content-type",
    "content-length",
    "retry-after",
    "x-should-retry",
    "x-image-seeds",
    "x-ignored-params",
    RUN_ID_HEADER,
)


def passed_on(answer: Answer) -> dict[str, str]:
    """Headers of a node's answer that are meant for the client; the rest describes the hop."""
    return {name: answer.headers[name] for name in _PASSED_ON if name in answer.headers}


def is_answer(answer: Answer, accepted: Accepted) -> bool:
    """Whether a 200 is of the kind that was asked for, and of this run: a page of some proxy is not, nor another's answer."""
    kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    if accepted.request.stream:
        # Its run is named with the picture, at the end.
        return kind == "text/event-stream"
    return kind == "application/json" and answer.headers.get(RUN_ID_HEADER) == accepted.run_id


def patience_with(accepted: Accepted, lost: asyncio.Event, *, deadline_s: float) -> Patience:
    """For the body of its answer: a device works on while a stream comes, but not beyond the run's time.

    lost: set when its node is gone. deadline_s: on the monotonic clock.
    """
    works_s = max(0.0, deadline_s - time.monotonic()) if accepted.request.stream else 0.0
    return Patience(works_s + BODY_SILENCE_S, LEAST_BYTES_PER_S, lost)


def answer_headers(accepted: Accepted) -> dict[str, str]:
    """Headers of an answer rebuilt from the catalog."""
    request = accepted.request
    assert request.seed is not None
    seeds = range(request.seed, request.seed + request.n)
    return rebuilt_headers(accepted.run_id, seeds, stream=request.stream)


def rebuilt_headers(run_id: str, seeds: Iterable[int], *, stream: bool) -> dict[str, str]:
    """The same of any run. seeds: of each picture."""
    kind = events.HEADERS if stream else {"content-type": "application/json"}
    return {**kind, RUN_ID_HEADER: run_id, "x-image-seeds": ",".join(map(str, seeds))}


async def read_error(answer: Answer) -> bytes:
    """The body of an error: small, or none. A node that lies about it must not fill our memory, nor keep us waiting."""
    try:
        return await answer.read(max_bytes=MAX_ERROR_BYTES, silence_s=ERROR_SILENCE_S) or b""
    except Broken:
        return b""
    finally:
        answer.close()


def error_in(answer: Answer, body: bytes) -> AquatintError:
    """The error a node told, as one of ours; what it cannot be understood as is a failed node."""
    try:
        error = orjson.loads(body)["error"]
        message, code = str(error["message"]), error.get("code")
    except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
        return NotUnderstood("The node answered something that cannot be understood.", retryable=False)
    if code == CatalogUnavailable.code:
        return CatalogUnavailable(message)
    if code == StorageFull.code:
        return StorageFull(message)
    told = str(code) if code else None
    if code == OutOfDeviceMemory.code:
        return OutOfDeviceMemory(message, param="size" if error.get("param") == "size" else None)
    if answer.headers.get("x-should-retry") == "false":
        return EngineFailed(message, code=told)
    return NodeFailed(message, code=told, retryable=True if answer.headers.get("x-should-retry") == "true" else None)


def concerns_all(answer: Answer, error: AquatintError) -> bool:
    """Whether any other node would say the same. error: as `error_in` read it."""
    return isinstance(error, SHARED) or (answer.status in OF_THE_REQUEST and not isinstance(error, NotUnderstood))


def last_word(last: AquatintError | None, error: AquatintError) -> AquatintError:
    """What the client is told where no node is left: what a tried one said is worth more than "no capacity".

    What does not fit the memory of the nodes tried may fit another that is away or full: then a retry makes sense.
    """
    if isinstance(last, OutOfDeviceMemory) and isinstance(error, NoCapacity) and not error.hopeless:
        return OutOfDeviceMemory(last.message, param=last.param, retryable=True, retry_after_s=error.retry_after_s)
    return last or error


def holding_in(body: bytes) -> Holding | None:
    """What a node that has no place says it does instead; None where it does not say."""
    try:
        return Holding.model_validate(orjson.loads(body)["holding"])
    except (ValueError, KeyError, TypeError):
        return None
