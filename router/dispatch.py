"""Carries one run through: record, queue, pick, send, fail over, answer.

Order of writes: a run's row is committed before anything is sent, with that of its first attempt where a node has a place;
each further try gets an attempt row before it is sent, which fences the tries before it; the node writes the result. So a
crash anywhere leaves a row that says how far it came. Runs that come together share a commit.

One exception, as a commit costs a third of all that a request costs here: where the catalog is a file beside the nodes, a run
that goes straight to one, and that nobody else may ask for, is committed some milliseconds after it was sent, or by its node
as its turn comes, if that is sooner. A router that dies in between had told its client nothing of the run.

What is tried again, and what is not:
- never reached a node, or the node said it has no place: another node, at no cost.
- the node died, or its connection was lost, before the answer began: first the catalog is asked whether the run was
  finished after all (then its answer is rebuilt from the stored pictures). A node that is gone is left for another; one
  that lives is asked for nothing twice: what its device had begun is not begun again, what it had not begun is sent anew.
- a node's 5xx, and what is no answer to a run: another node. That the request is wrong, or that the catalog or the store
  is not to be had: the client gets it.
- nothing after the answer's first byte, except the rest of a finished answer out of the catalog.
- nothing beyond the budget of retries (`retry_budget.py`): where much fails, trying it all again would be too much.
"""

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

from common import tracing
from common.catalog import AttemptFenced, AttemptStatus, Catalog, NewRun
from common.errors import (
    AquatintError,
    CatalogUnavailable,
    DeadlineExceeded,
    NodeFailed,
    NotFound,
    RunCancelled,
)
from common.images_api import encoded, events
from common.later import Later, soon
from common.logs import bind, get_logger
from common.node_api import RUN_ID_HEADER
from router.answers import Answers
from router.body import Body, Whole
from router.decisions import DECISION_HEADER, Decisions, Pick
from router.forecast import Foreseen, foreseen_headers
from router.metrics import OUTCOMES, RouterMetrics
from router.node_client import NodeClient, NodeLost, NodeUnreachable
from router.placement import Ask
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
    last_word,
    may_pass,
    node_headers,
    passed_on,
    patience_with,
    read_error,
    row_of,
)
from router.retry_budget import RetryBudget
from router.ticket import Ticket
from router.turns import Turns
from router.wire import Answer, Broken, Patience

log = get_logger(__name__)

BUSY = (409, 429)
"""A node's way of saying that it has no place after all; another router was quicker."""
CLOSE_WITHIN_S = 5.0


@dataclass(slots=True)
class _Journey:
    """What has happened to one run so far."""

    accepted: Accepted
    row: NewRun
    """In the catalog; its `request` is what a node is sent, too."""
    deadline_s: float
    ask: Ask
    recorded: bool = False
    """Its row is committed, or will be before this process asks for it."""
    ticket: Ticket | None = None
    """Its place in line, where a node had none for it."""
    foreseen: Foreseen | None = None
    """What was predicted when it came."""
    began_s: float = field(default_factory=time.monotonic)
    attempts: int = 0
    last: AquatintError | None = None


@dataclass(slots=True)
class _Try:
    """One attempt at one node, where it has a place and is written down."""

    node: Node
    no: int
    turned_away: bool = False
    """The node had no place after all, so there is none to give back."""
    streams: bool = False
    """Its answer has begun, with a preview, before it is made."""
    began_s: float = field(default_factory=time.monotonic)


class Dispatcher:
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
        decisions: Decisions,
        later: Later,
        look: Callable[[Node], Awaitable[bool]],
        run_timeout_s: float,
        max_attempts: int,
    ) -> None:
        self._catalog = catalog
        self._registry = registry
        self._queue = queue
        self._client = client
        self._answers = answers
        self._metrics = metrics
        self._decisions = decisions
        self._later = later
        self._look = look
        self._run_timeout_s = run_timeout_s
        self._max_attempts = max_attempts
        self.held: dict[str, Accepted] = {}
        """Runs this router is responsible for, by id; their sign of life is sent to the catalog."""
        self._turns = Turns()
        self._one_less = asyncio.Event()
        self._interrupted = False
        self._retries = RetryBudget()

    def interrupt(self) -> None:
        """The process is told to stop now: what is cancelled from here on is not its client's doing."""
        self._interrupted = True

    async def interrupted(self) -> None:
        """Wait, a while at most, until every run that was interrupted is written down."""
        try:
            async with asyncio.timeout(CLOSE_WITHIN_S):
                while self._interrupted and not all(accepted.lasting for accepted in self.held.values()):
                    self._one_less.clear()
                    await self._one_less.wait()
        except TimeoutError:
            log.warning("runs_not_closed", runs=list(self.held))

    async def run(self, accepted: Accepted) -> Reply:
        """Dispatch to the end: returns when an answer begins.

        Raises: any AquatintError; the run's row says the same. Cancelling the caller cancels the run.
        """
        await self._turns.come(accepted.arrived_s)
        if accepted.arrival is not None:
            await accepted.arrival.first()
        self._queue.check_room(accepted.ask, key_id=accepted.key_id, wishes=accepted.wishes)
        bind(run_id=accepted.run_id)
        lasts_s = min(self._run_timeout_s, accepted.wishes.deadline_s or math.inf)
        tracing.note(run_id=accepted.run_id, model=accepted.request.model or "")
        # One that no client waits for may have waited for longer in the catalog.
        begins_s = time.monotonic() if accepted.arrival is None else accepted.arrived_s
        journey = _Journey(accepted, row_of(accepted), begins_s + lasts_s, accepted.ask)
        if accepted.claim is not None or accepted.recorded:
            earlier = await self._catalog.runs.open(journey.row, accepted.claim)
            if earlier is not None:
                return await self._answers.replay(earlier, stream=accepted.request.stream, public_url=accepted.public_url)
            journey.recorded = True
        self._retries.earn(time.monotonic())
        self.held[accepted.run_id] = accepted
        try:
            return await self._try_nodes(journey)
        except asyncio.CancelledError:
            if not accepted.lasting:
                await asyncio.shield(self.close(accepted.run_id, self.why_cancelled(accepted)))
            raise
        except AquatintError as error:
            error.run_id = accepted.run_id if journey.recorded else None
            if journey.recorded and not (accepted.lasting and may_pass(error)):
                await self.close(accepted.run_id, error)
            raise
        except BaseException as error:
            await self.close(accepted.run_id, NodeFailed(f"dispatch failed: {type(error).__name__}"))
            raise
        finally:
            if journey.ticket is not None:
                self._queue.withdraw(journey.ticket)
            self.let_go(accepted)

    def let_go(self, accepted: Accepted) -> None:
        """This router answers for a run no more. One whose parts were given up was held twice, and is let go of twice."""
        self.held.pop(accepted.run_id, None)
        if self._interrupted:
            self._one_less.set()

    def why_cancelled(self, accepted: Accepted) -> AquatintError:
        """How a run ended whose dispatch is cancelled just now."""
        if self._interrupted:
            return NodeFailed("The router was stopped during the run.", code="interrupted", retryable=True)
        return RunCancelled(
            "The client left." if accepted.parent_id is None else "The run that it is a part of has ended, or is made as one."
        )

    async def _try_nodes(self, journey: _Journey) -> Reply:
        while journey.attempts < self._max_attempts:
            took_s: float | None = None
            this: _Try | None = None
            try:
                this = await tracing.span("place", self._next_try(journey))
                journey.ticket = None
                self._decisions.began(journey.accepted.run_id, this.no, self._queue.pick(journey.accepted.run_id))
                attempt = self._attempt(journey, this)
                reply = await tracing.span("attempt", attempt, node=this.node.name, attempt=this.no)
                took_s = time.monotonic() - this.began_s if reply is not None and reply.status == 200 else None
                if reply is not None:
                    self._tell(reply, journey, this)
            except AttemptFenced:
                # The run ended while we were not looking: a node given up for lost has finished it after all,
                # or the sweeper closed it while the catalog could not hear that it was alive.
                reply = await self._finished(journey.accepted)
                if reply is None:
                    raise NodeFailed("The run was interrupted.", code="interrupted", retryable=True, retry_after_s=1) from None
            finally:
                goes_on = took_s is not None and journey.accepted.request.partial_images > 0
                if this is not None and not goes_on:
                    if took_s is not None:
                        soon(self._answered, journey, this)
                    else:
                        self._left(journey, this, False)
            if reply is not None:
                if this is not None and goes_on:
                    this.streams = True
                    # The device works on while it comes, so the run's place is its own to the end.
                    reply.body = Body(reply.body, partial(self._left, journey, this))
                return reply
            # Where the node had no place, nothing failed.
            if journey.last is not None and journey.attempts < self._max_attempts:
                self._pay(journey.last)
        assert journey.last is not None
        raise journey.last

    def _left(self, journey: _Journey, this: _Try, whole: bool) -> None:
        """A try has left its node. whole: its answer is. What of a stream came before its client left is charged as well."""
        took_s, began = time.monotonic() - this.began_s, whole or this.streams
        self._decisions.ended(journey.accepted.run_id, this.no, took_s=took_s if whole else None)
        if not this.turned_away:
            self._queue.release(this.node, journey.accepted.run_id, took_s=took_s if began else None)

    def _answered(self, journey: _Journey, this: _Try) -> None:
        """A try has left its node with the whole of its answer."""
        pick = self._queue.pick(journey.accepted.run_id) if journey.attempts == 1 else None
        self._later.put(self._compare, journey.foreseen, pick, time.monotonic() - journey.began_s)
        self._left(journey, this, True)

    def _compare(self, foreseen: Foreseen | None, pick: Pick | None, total_s: float) -> None:
        """What was predicted with what came of it. pick: of the only try."""
        if foreseen is not None and foreseen.finish_s is not None:
            self._metrics.predicted("answer", foreseen.finish_s, total_s)
        if pick is not None:
            self._queue.answered(pick, total_s)

    def _tell(self, reply: Reply, journey: _Journey, this: _Try) -> None:
        """Add to an answer what was predicted of it, and why it was made where it was made, if that was asked."""
        told = foreseen_headers(journey.foreseen)
        if journey.accepted.debug:
            told[DECISION_HEADER] = self._decisions.shown(journey.accepted.run_id, this.no)
        reply.headers = {**reply.headers, **told}

    def _pay(self, last: AquatintError) -> None:
        """For one more try. Raises: NodeFailed: it cannot be afforded."""
        paid = self._retries.spend(time.monotonic())
        self._metrics.retry("made" if paid else "refused")
        if not paid:
            raise NodeFailed(f"{last.message} Too many runs are tried again just now.", retryable=True, retry_after_s=5)

    async def _next_try(self, journey: _Journey) -> _Try:
        """A place at a node, and the attempt's row; the first time the run's row too, whether or not there is a place yet."""
        run_id = journey.accepted.run_id
        ticket = journey.ticket = journey.ticket or self._queue.enter(
            run_id,
            journey.ask,
            key_id=journey.accepted.key_id,
            wishes=journey.accepted.wishes,
            deadline_s=journey.deadline_s,
            arrived_s=journey.accepted.arrived_s,
        )
        if journey.accepted.arrival is not None:
            journey.accepted.arrival.over()
        if journey.foreseen is None:
            journey.foreseen = self._queue.foreseen_of(ticket)
        try:
            if not journey.recorded:
                first = ticket.node
                if first is not None and self._is_recorded_soon(journey.row):
                    self._catalog.runs.open_soon(journey.row, node=first.name)
                else:
                    await self._catalog.runs.open_new(journey.row, first_node=first.name if first else None)
                journey.recorded = True
                if first is not None:
                    return _Try(first, 1)
            node = await self._placed(ticket, journey)
            return _Try(node, await self._catalog.runs.begin_attempt(run_id, node=node.name))
        except BaseException:
            # At once: to write down how it ended takes time.
            self._queue.withdraw(ticket)
            raise

    def _is_recorded_soon(self, row: NewRun) -> bool:
        """Whether a run may be sent before it is committed: one that a node can record all of, while there is a catalog."""
        return row.result_key is None and row.parent_id is None and self._catalog.runs.may_be_opened_soon

    async def _placed(self, ticket: Ticket, journey: _Journey) -> Node:
        try:
            return await self._queue.granted(ticket)
        except AquatintError as error:
            raise last_word(journey.last, error) from None

    async def _attempt(self, journey: _Journey, this: _Try) -> Reply | None:
        """One try. None: try elsewhere; `journey` knows why."""
        accepted, node = journey.accepted, this.node
        journey.attempts += 1
        bind(node=node.name, attempt=this.no, model=accepted.request.model)
        if accepted.arrival is None or accepted.request.stream:
            # Any other is told of, with its node, by the line of its request.
            soon(log.info, "dispatched")
        try:
            answer = await self._answer_of(this, journey)
        except NodeUnreachable as error:
            await self._registry.failed(node, f"unreachable: {error}", gone=True)
            # Nothing began there, so the same node will do once it answers again: until then it is not picked.
            await self._note_failed(this, journey, "unreachable", "The node could not be reached.")
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
        body = Body(self._chunks(answer, accepted, patience), lambda whole: answer.close())
        return Reply(200, headers, body, pour)

    async def _lost(self, journey: _Journey, this: _Try, error: NodeLost) -> Reply | None:
        """The connection ended without an answer, so what happened there is looked up: in the catalog, and at the node."""
        node, accepted = this.node, journey.accepted
        log.warning("node_lost", node=node.name, why=str(error))
        self._registry.model_failed(node, accepted.ask.model, accepted.run_id)
        alive = not node.lost.is_set() and await self._look(node)
        finished = await self._finished(accepted)
        if finished is not None:
            self._metrics.attempt(node.name, "recovered")
            return finished
        message = "The node's connection was lost during the run."
        if not alive:
            await self._elsewhere(journey, this, "connection_lost", message)
            return None
        begun = await self._begun(accepted.run_id)
        await self._note_failed(this, journey, "connection_lost", message)
        if begun:
            raise NodeFailed(f"{message} It had begun, so it is not begun again.", retryable=False)
        self._prefer_others(journey, node)
        journey.last = NodeFailed(message, retry_after_s=1)
        return None

    def _prefer_others(self, journey: _Journey, node: Node) -> None:
        """Not that node again, unless there is no other: what it did once to a run it may do twice."""
        ask = excluding(journey.ask, node)
        if self._registry.fleet.place(ask, time.monotonic()).node_id is not None:
            journey.ask = ask

    async def _begun(self, run_id: str) -> bool:
        """Whether a device has begun with the last attempt: nodes write that down before it does."""
        run = await self._catalog.runs.get(run_id)
        return run.attempts[-1].status is not AttemptStatus.SENT

    async def _finished(self, accepted: Accepted) -> Reply | None:
        """The answer of a run that succeeded without our hearing of it; None if it did not."""
        body = await self._answers.rebuild(accepted.run_id, public_url=accepted.public_url)
        return None if body is None else Reply(200, answer_headers(accepted), Whole(body))

    async def _answer_of(self, this: _Try, journey: _Journey) -> Answer:
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

    async def _refused(self, journey: _Journey, this: _Try, answer: Answer) -> Reply | None:
        """The node answered, but not with pictures."""
        body = await read_error(answer)
        error = error_in(answer, body)
        if answer.status in BUSY:
            # Another router was quicker. Before anything is waited for, or those behind would overtake.
            journey.ticket = self._queue.turned_away(this.node, journey.accepted.run_id, holding_in(body))
            this.turned_away = True
            journey.attempts -= 1
            journey.last = None
            await self._note_failed(this, journey, "busy", "The node had no place.")
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

    async def _elsewhere(self, journey: _Journey, this: _Try, code: str, message: str) -> None:
        await self._note_failed(this, journey, code, message)
        journey.ask = excluding(journey.ask, this.node)
        # One failure may be the node's; failing on every node tried is the run's own, and a retry would triple the damage.
        retryable = journey.attempts < self._max_attempts
        journey.last = NodeFailed(
            f"{message} No other node could take the run.", retryable=retryable, retry_after_s=5 if retryable else None
        )

    async def _note_failed(self, this: _Try, journey: _Journey, code: str, message: str) -> None:
        (log.info if code == "busy" else log.warning)("attempt_failed", node=this.node.name, attempt=this.no, code=code)
        self._metrics.attempt(this.node.name, code if code in OUTCOMES else "node_error")
        await self._catalog.runs.attempt_failed(journey.accepted.run_id, this.no, code=code, message=message)

    async def close(self, run_id: str, error: AquatintError) -> None:
        """Write down how a run that got no answer ended. The sweeper does it later if the catalog cannot be reached now."""
        try:
            if isinstance(error, RunCancelled):
                await self._catalog.runs.cancel(run_id, reason=error.message)
            else:
                await self._catalog.runs.fail(run_id, code=error.code or "failed", message=error.message)
        except (CatalogUnavailable, AttemptFenced, NotFound) as unavailable:
            log.warning("run_not_closed", run_id=run_id, why=unavailable.message)

    async def _chunks(self, answer: Answer, accepted: Accepted, patience: Patience) -> AsyncGenerator[bytes]:
        """The node's bytes as they come; if its connection breaks, the rest out of the catalog."""
        length = int(answer.headers.get("content-length", -1))
        try:
            async for chunk in answer.chunks(patience):
                if answer.taken_bytes > MAX_ANSWER_BYTES:
                    raise Broken("the answer has no end")
                yield chunk
        except Broken as error:
            sent = answer.taken_bytes
            log.warning("answer_broke_off", run_id=accepted.run_id, sent=sent, why=str(error))
            if accepted.request.stream:
                yield await self._last_event(accepted)
                return
            finished = await self._answers.rebuild(accepted.run_id, public_url=accepted.public_url)
            if finished is None or len(finished) != length:
                await self.close(accepted.run_id, NodeFailed("The node's answer broke off."))
                raise
            yield finished[sent:]

    async def _last_event(self, accepted: Accepted) -> bytes:
        """The end of a stream whose node is gone: the picture, if it was stored, else what went wrong."""
        event = await self._answers.completed_event(accepted.run_id)
        if event is not None:
            return event
        error = NodeFailed("The node's connection was lost during the run.", retryable=True)
        await self.close(accepted.run_id, error)
        # A frame that was cut in the middle is ended by the blank line and dropped by clients.
        return b"\n\n" + events.failed(error)
