"""One try of a run at one node: sent, answered, and what becomes of the run where the answer is none.

Whatever a node does, what comes of it is one of three: an answer for the client, an error for the client, or that another
node is to be tried (`dispatch.py` says when).
"""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from functools import partial

from common import tracing
from common.catalog import AttemptStatus, Catalog
from common.errors import DeadlineExceeded, NodeFailed
from common.images_api import encoded, events
from common.later import soon
from common.logs import bind, get_logger
from common.node_api import RUN_ID_HEADER
from router.answers import Answers
from router.body import Body, Whole
from router.ending import close
from router.frames import Frames
from router.journey import Journey, Try
from router.metrics import OUTCOMES, RouterMetrics
from router.node_client import NodeClient, NodeLost, NodeUnreachable
from router.queue import Queue, excluding
from router.registry import Node, Registry
from router.relay import (
    MAX_ANSWER_BYTES,
    Accepted,
    Reply,
    answer_headers,
    concerns_all,
    error_in,
    holding_in,
    is_answer,
    node_headers,
    passed_on,
    patience_with,
    read_error,
)
from router.wire import Answer, Broken, Patience

log = get_logger(__name__)

BUSY = (409, 429)
"""A node's way of saying that it has no place after all; another router was quicker."""


class Attempts:
    """See the module."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        registry: Registry,
        queue: Queue,
        client: NodeClient,
        answers: Answers,
        metrics: RouterMetrics,
        look: Callable[[Node], Awaitable[bool]],
        max_attempts: int,
    ) -> None:
        """look: whether a node answers just now."""
        self._catalog = catalog
        self._registry = registry
        self._queue = queue
        self._client = client
        self._answers = answers
        self._metrics = metrics
        self._look = look
        self.most = max_attempts
        """Nodes that one run is tried on."""

    async def make(self, journey: Journey, this: Try) -> Reply | None:
        """One try. None: try elsewhere; `journey` knows why."""
        accepted, node = journey.accepted, this.node
        journey.attempts += 1
        bind(node=node.name, attempt=this.no, model=accepted.request.model)
        if accepted.arrival is None or accepted.request.stream:
            # Any other is told of, with its node, by the line of its request.
            soon(log.info, "dispatched")
        try:
            answer = await self._answer_of(journey, this)
        except NodeUnreachable as error:
            await self._registry.failed(node, f"unreachable: {error}", gone=True)
            # Nothing began there, so the same node will do once it answers again: until then it is not picked.
            await self._note_failed(journey, this, "unreachable", "The node could not be reached.")
            journey.last = NodeFailed("The node could not be reached, and no other can take the run.", retry_after_s=5)
            return None
        except NodeLost as error:
            return await self._lost(journey, this, error)
        if answer.status != 200:
            return await self._refused(journey, this, answer)
        if not is_answer(answer, accepted):
            answer.close()
            self._registry.model_failed(node, accepted.ask.model, accepted.run_id)
            await self._elsewhere(journey, this, "node_error", "The node answered something that is no answer to a run.")
            return None
        self._registry.model_worked(node, accepted.ask.model, accepted.run_id)
        self._metrics.attempt(node.name, "succeeded")
        headers = {RUN_ID_HEADER: accepted.run_id} | passed_on(answer)
        if (content := answer.whole()) is not None:
            return Reply(200, headers, Whole(content))
        patience = patience_with(accepted, node.lost, deadline_s=journey.deadline_s)
        bounded = int(answer.headers.get("content-length", 0)) <= MAX_ANSWER_BYTES
        pour = partial(answer.pour, patience=patience) if answer.can_pour and bounded else None
        passed = self._frames if accepted.request.stream else self._chunks
        body = Body(passed(answer, accepted, patience), lambda whole: answer.close())
        return Reply(200, headers, body, pour)

    async def _answer_of(self, journey: Journey, this: Try) -> Answer:
        """The node's answer, unless the node is lost or time is over first. Cancelling closes the connection, which is how
        the node learns that nobody waits any more.

        Raises: NodeUnreachable, NodeLost, DeadlineExceeded.
        """
        accepted, node = journey.accepted, this.node
        body, content_type = encoded(accepted.request, journey.row.request)
        places = self._registry.places(node, journey.ask.model)
        headers = node_headers(accepted, this.no, places) | {"content-type": content_type} | tracing.outgoing()
        task, deadline_s = accepted.request.task, journey.deadline_s
        try:
            return await self._client.start(node.address, task, body, headers, lost=node.lost, deadline_s=deadline_s)
        except TimeoutError:
            raise DeadlineExceeded("The run did not end in the time it was given.", retryable=False) from None

    async def finished(self, accepted: Accepted) -> Reply | None:
        """The answer of a run that succeeded without our hearing of it; None if it did not."""
        stream, public_url = accepted.request.stream, accepted.public_url
        body = await self._answers.rebuild(accepted.run_id, stream=stream, public_url=public_url)
        return None if body is None else Reply(200, answer_headers(accepted), Whole(body))

    async def _lost(self, journey: Journey, this: Try, error: NodeLost) -> Reply | None:
        """The connection ended without an answer, so what happened there is looked up: in the catalog, and at the node."""
        node, accepted = this.node, journey.accepted
        log.warning("node_lost", node=node.name, why=str(error))
        self._registry.model_failed(node, accepted.ask.model, accepted.run_id)
        alive = not node.lost.is_set() and await self._look(node)
        finished = await self.finished(accepted)
        if finished is not None:
            self._metrics.attempt(node.name, "recovered")
            return finished
        message = "The node's connection was lost during the run."
        if not alive:
            await self._elsewhere(journey, this, "connection_lost", message)
            return None
        begun = await self._begun(accepted.run_id)
        await self._note_failed(journey, this, "connection_lost", message)
        if begun:
            raise NodeFailed(f"{message} It had begun, so it is not begun again.", retryable=False)
        self._prefer_others(journey, node)
        journey.last = NodeFailed(message, retry_after_s=1)
        return None

    def _prefer_others(self, journey: Journey, node: Node) -> None:
        """Not that node again, unless there is no other: what it did once to a run it may do twice."""
        ask = excluding(journey.ask, node)
        if self._registry.fleet.place(ask, time.monotonic()).node_id is not None:
            journey.ask = ask

    async def _begun(self, run_id: str) -> bool:
        """Whether a device has begun with the last attempt: nodes write that down before it does."""
        run = await self._catalog.runs.get(run_id)
        return run.attempts[-1].status is not AttemptStatus.SENT

    async def _refused(self, journey: Journey, this: Try, answer: Answer) -> Reply | None:
        """The node answered, but not with pictures."""
        body = await read_error(answer)
        error = error_in(answer, body)
        if answer.status in BUSY:
            # Another router was quicker. Before anything is waited for, or those behind would overtake.
            journey.ticket = self._queue.turned_away(this.node, journey.accepted.run_id, holding_in(body))
            this.turned_away = True
            journey.attempts -= 1
            journey.last = None
            await self._note_failed(journey, this, "busy", "The node had no place.")
            return None
        if concerns_all(answer, error):
            self._metrics.attempt(this.node.name, "refused")
            await self._catalog.runs.fail(journey.accepted.run_id, code=error.code or "refused", message=error.message)
            return Reply(answer.status, {RUN_ID_HEADER: journey.accepted.run_id} | passed_on(answer), Whole(body))
        if error.param != "size":
            # A picture too large for the node's memory says nothing against smaller ones.
            self._registry.model_failed(this.node, journey.accepted.ask.model, journey.accepted.run_id)
        await self._elsewhere(journey, this, error.code or "node_error", error.message)
        journey.last = error
        return None

    async def _elsewhere(self, journey: Journey, this: Try, code: str, message: str) -> None:
        await self._note_failed(journey, this, code, message)
        journey.ask = excluding(journey.ask, this.node)
        # One failure may be the node's; failing on every node tried is the run's own, and a retry would triple the damage.
        retryable = journey.attempts < self.most
        journey.last = NodeFailed(
            f"{message} No other node could take the run.", retryable=retryable, retry_after_s=5 if retryable else None
        )

    async def _note_failed(self, journey: Journey, this: Try, code: str, message: str) -> None:
        (log.info if code == "busy" else log.warning)("attempt_failed", node=this.node.name, attempt=this.no, code=code)
        self._metrics.attempt(this.node.name, code if code in OUTCOMES else "node_error")
        await self._catalog.runs.attempt_failed(journey.accepted.run_id, this.no, code=code, message=message)

    async def _chunks(self, answer: Answer, accepted: Accepted, patience: Patience) -> AsyncGenerator[bytes]:
        """The node's bytes as they come; if its connection breaks, the rest out of the catalog."""
        length = int(answer.headers.get("content-length", -1))
        try:
            async for chunk in _bounded(answer, patience):
                yield chunk
        except Broken as error:
            sent = answer.taken_bytes
            log.warning("answer_broke_off", run_id=accepted.run_id, sent=sent, why=str(error))
            finished = await self._answers.rebuild(accepted.run_id, public_url=accepted.public_url)
            if finished is None or len(finished) != length:
                await close(self._catalog, accepted.run_id, NodeFailed("The node's answer broke off."))
                raise
            yield finished[sent:]

    async def _frames(self, answer: Answer, accepted: Accepted, patience: Patience) -> AsyncGenerator[bytes]:
        """The same of a stream."""
        frames = Frames()
        try:
            async for chunk in _bounded(answer, patience):
                if ready := frames.take(chunk):
                    yield ready
            if left := frames.left():
                yield left
        except Broken as error:
            log.warning("answer_broke_off", run_id=accepted.run_id, sent=answer.taken_bytes, why=str(error))
            rest = frames.rest(await self._last_event(accepted))
            if rest is None:
                raise
            yield rest

    async def _last_event(self, accepted: Accepted) -> bytes:
        """The end of a stream whose node is gone: the picture, if it was stored, else what went wrong."""
        event = await self._answers.rebuild(accepted.run_id, stream=True)
        if event is not None:
            return event
        error = NodeFailed("The node's connection was lost during the run.", retryable=True)
        await close(self._catalog, accepted.run_id, error)
        return events.failed(error)


async def _bounded(answer: Answer, patience: Patience) -> AsyncIterator[bytes]:
    """Its body. Raises: Broken: it was cut off, or has no end."""
    async for chunk in answer.chunks(patience):
        if answer.taken_bytes > MAX_ANSWER_BYTES:
            raise Broken("the answer has no end")
        yield chunk
