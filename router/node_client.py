"""The only file that knows a node's paths, and what its silence and its answers mean.

Two clients: httpx for everything small, and `router.wire` for runs, whose answers are as large as pictures.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass

import httpx
from pydantic import ValidationError

from common.dialling import trusted
from common.errors import Conflict, InvalidRequest
from common.images_api import Task
from common.node_api import ChoreOrder, ChoreState, ChoreStatus, NodeStatus
from common.state_lines import MEDIA_TYPE, NotAState, StateReader
from router import wire

MAX_STATUS_BYTES = 4 * 1024 * 1024
SILENT_S = 2.0
"""A node that says nothing for this long, four times as long as it should, may be gone without a word."""
ROUTES = {
    Task.GENERATION: "/v1/images/generations",
    Task.EDIT: "/v1/images/edits",
    Task.VARIATION: "/v1/images/variations",
}


class NodeUnreachable(Exception):
    """Nothing was sent: the connection could not be made. Safe to try elsewhere."""


class NodeLost(Exception):
    """The connection ended without a whole answer: the run may or may not have happened there."""


class NodeNonsense(Exception):
    """The node answered something that is not an answer."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a node is and what opens its door."""

    url: str
    token: str | None

    def headers(self) -> dict[str, str]:
        """Authorisation, for this node only."""
        return {} if self.token is None else {"authorization": f"Bearer {self.token}"}


class NodeClient:
    """HTTP to nodes. Redirects are never followed: a node's token must not travel."""

    def __init__(self, *, connect_timeout_s: float, probe_timeout_s: float) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=30)
        timeout = httpx.Timeout(probe_timeout_s, connect=min(connect_timeout_s, probe_timeout_s))
        self._probe_timeout_s = probe_timeout_s
        self._small = httpx.AsyncClient(limits=limits, timeout=timeout, trust_env=False, verify=trusted())
        # Reading has no limit of its own: a picture takes what it takes; the dispatcher holds deadline and node health.
        self._pool = wire.Pool(connect_timeout_s=connect_timeout_s)

    async def aclose(self) -> None:
        """Close all connections."""
        self._pool.close()
        await self._small.aclose()

    async def start(
        self,
        node: Address,
        task: Task,
        body: Sequence[bytes],
        headers: Mapping[str, str],
        *,
        lost: asyncio.Event,
        deadline_s: float,
    ) -> wire.Answer:
        """Send a run, `headers` saying what kind of body it has; returns when the answer begins. The caller closes it.

        body: in pieces. lost: gives up soon after it is set. deadline_s: on the monotonic clock.
        Raises: NodeUnreachable, NodeLost, TimeoutError.
        """
        try:
            url = node.url.rstrip("/") + ROUTES[task]
            return await self._pool.post(url, {**headers, **node.headers()}, body, lost=lost, deadline_s=deadline_s)
        except wire.Refused as error:
            raise NodeUnreachable(str(error)) from error
        except wire.Broken as error:
            raise NodeLost(str(error)) from error

    async def status(self, node: Address) -> NodeStatus:
        """One look. Raises: NodeUnreachable, NodeLost, NodeNonsense."""
        try:
            url = node.url.rstrip("/") + "/node/v1/status"
            # httpx bounds each read; a node that sends byte after byte would never come to an end.
            async with (
                asyncio.timeout(self._probe_timeout_s),
                self._small.stream("GET", url, headers=node.headers()) as response,
            ):
                body = await _bounded(response, MAX_STATUS_BYTES)
        except TimeoutError as error:
            raise NodeLost("the look took too long") from error
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise NodeUnreachable(_reason(error)) from error
        except httpx.HTTPError as error:
            raise NodeLost(_reason(error)) from error
        if response.status_code in (401, 403):
            raise NodeNonsense("the node refuses our token")
        if response.status_code != 200:
            raise NodeNonsense(f"status answered {response.status_code}")
        try:
            return NodeStatus.model_validate_json(body)
        except ValidationError as error:
            raise NodeNonsense(f"status is not understood: {error.error_count()} faults") from error

    async def states(self, node: Address) -> AsyncGenerator[NodeStatus | None]:
        """What a node says of itself, as it changes; None for a sign of life. Many changes at once are one.

        Raises: NodeUnreachable, NodeLost, NodeNonsense; it ends only by one of them.
        """
        url = node.url.rstrip("/") + "/node/v1/events"
        try:
            async with asyncio.timeout(self._probe_timeout_s):
                answer = await self._pool.get(url, node.headers())
        except wire.Refused as error:
            raise NodeUnreachable(str(error)) from error
        except (wire.Broken, TimeoutError) as error:
            raise NodeLost(str(error) or "its state was too long in coming") from error
        try:
            if answer.status != 200 or not answer.headers.get("content-type", "").startswith(MEDIA_TYPE):
                raise NodeNonsense(f"it has no state stream (status {answer.status})")
            reader = StateReader(max_bytes=MAX_STATUS_BYTES)
            while (content := await answer.arrived(silence_s=SILENT_S)) is not None:
                yield reader.status if reader.take(content) else None
            raise NodeLost("it ended its state stream")
        except wire.Broken as error:
            raise NodeLost(f"its state stream broke: {error}") from error
        except NotAState as error:
            raise NodeNonsense(f"its state stream is not understood: {error}") from error
        finally:
            answer.close()

    async def cancel(self, node: Address, run_id: str) -> bool:
        """Have a node end a run, at its next step if it is running. False: the node could not be told."""
        url = node.url.rstrip("/") + "/node/v1/cancel"
        try:
            told = await self._small.post(url, json={"run_id": run_id}, headers=node.headers())
        except httpx.HTTPError:
            return False
        return told.status_code == 200

    async def begin_chore(self, node: Address, order: ChoreOrder) -> ChoreStatus:
        """Have a node begin with long work on its files; asked again, it says how far that is.

        Raises: NodeUnreachable, NodeLost, NodeNonsense. InvalidRequest: the node refuses the order for good.
        """
        try:
            told = await self._small.post(
                node.url.rstrip("/") + "/node/v1/chores", content=order.model_dump_json(), headers=_json_to(node)
            )
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise NodeUnreachable(_reason(error)) from error
        except httpx.HTTPError as error:
            raise NodeLost(_reason(error)) from error
        if told.status_code == 400:
            raise InvalidRequest(f"The node refuses it: {told.json()['error']['message']}")
        if told.status_code == 429:
            # It does others first.
            return ChoreStatus(name=order.name, state=ChoreState.RUNNING)
        if told.status_code != 200:
            raise NodeNonsense(f"it answered {told.status_code}")
        try:
            return ChoreStatus.model_validate_json(told.content)
        except ValidationError as error:
            raise NodeNonsense(f"its chore is not understood: {error.error_count()} faults") from error

    async def end_chore(self, node: Address, name: str) -> bool:
        """Have a node end such work. False: the node could not be told."""
        try:
            told = await self._small.delete(f"{node.url.rstrip('/')}/node/v1/chores/{name}", headers=node.headers())
        except httpx.HTTPError:
            return False
        return told.status_code == 200

    async def set_token(self, node: Address, token: str) -> None:
        """Have a node take another token. Raises: Conflict: it could not be told, or may not change it."""
        url = node.url.rstrip("/") + "/node/v1/token"
        try:
            told = await self._small.post(url, json={"token": token}, headers=node.headers())
        except httpx.HTTPError as error:
            raise Conflict(f"The node could not be told: {_reason(error)}.", code="node_not_told") from error
        if told.status_code == 409:
            raise Conflict("The node's token is set by its own settings: change it there, then tell the router of it.")
        if told.status_code != 200:
            raise Conflict(f"The node could not be told: it answered {told.status_code}.", code="node_not_told")


def _json_to(node: Address) -> dict[str, str]:
    return {"content-type": "application/json", **node.headers()}


async def _bounded(response: httpx.Response, max_bytes: int) -> bytes:
    chunks, size = [], 0
    async for chunk in response.aiter_bytes():
        size += len(chunk)
        if size > max_bytes:
            raise NodeNonsense(f"the answer is larger than {max_bytes:,} bytes")
        chunks.append(chunk)
    return b"".join(chunks)


def _reason(error: httpx.HTTPError) -> str:
    # Never the address: reasons reach clients.
    return type(error).__name__
