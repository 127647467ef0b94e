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
from functools import partial

from common import tracing
from common.catalog import AttemptFenced, Catalog, NewRun
from common.errors import AquatintError, NodeFailed, RunCancelled
from common.later import Later, soon
from common.logs import bind, get_logger
from router.answers import Answers
from router.attempts import Attempts
from router.body import Body
from router.decisions import DECISION_HEADER, Decisions, Pick
from router.ending import close
from router.forecast import Foreseen, foreseen_headers
from router.journey import Journey, Try
from router.metrics import RouterMetrics
from router.queue import Queue
from router.registry import Node
from router.relay import Accepted, Reply, last_word, may_pass, row_of
from router.retry_budget import RetryBudget
from router.ticket import Ticket
from router.turns import Turns

log = get_logger(__name__)

CLOSE_WITHIN_S = 5.0


class Dispatcher:
    """See the module."""

    def __init__(
        self,
        *,
        attempts: Attempts,
        catalog: Catalog,
        queue: Queue,
        answers: Answers,
        metrics: RouterMetrics,
        decisions: Decisions,
        later: Later,
        run_timeout_s: float,
    ) -> None:
        self._attempts = attempts
        self._catalog = catalog
        self._queue = queue
        self._answers = answers
        self._metrics = metrics
        self._decisions = decisions
        self._later = later
        self._run_timeout_s = run_timeout_s
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
        journey = Journey(accepted, row_of(accepted), begins_s + lasts_s, accepted.ask)
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
                await asyncio.shield(close(self._catalog, accepted.run_id, self.why_cancelled(accepted)))
            raise
        except AquatintError as error:
            error.run_id = accepted.run_id if journey.recorded else None
            if journey.recorded and not (accepted.lasting and may_pass(error)):
                await close(self._catalog, accepted.run_id, error)
            raise
        except BaseException as error:
            await close(self._catalog, accepted.run_id, NodeFailed(f"dispatch failed: {type(error).__name__}"))
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

    async def _try_nodes(self, journey: Journey) -> Reply:
        while journey.attempts < self._attempts.most:
            took_s: float | None = None
            this: Try | None = None
            try:
                this = await tracing.span("place", self._next_try(journey))
                journey.ticket = None
                self._decisions.began(journey.accepted.run_id, this.no, self._queue.pick(journey.accepted.run_id))
                attempt = self._attempts.make(journey, this)
                reply = await tracing.span("attempt", attempt, node=this.node.name, attempt=this.no)
                took_s = time.monotonic() - this.began_s if reply is not None and reply.status == 200 else None
                if reply is not None:
                    self._tell(reply, journey, this)
            except AttemptFenced:
                # The run ended while we were not looking: a node given up for lost has finished it after all,
                # or the sweeper closed it while the catalog could not hear that it was alive.
                reply = await self._attempts.finished(journey.accepted)
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
            if journey.last is not None and journey.attempts < self._attempts.most:
                self._pay(journey.last)
        assert journey.last is not None
        raise journey.last

    def _left(self, journey: Journey, this: Try, whole: bool) -> None:
        """A try has left its node. whole: its answer is. What of a stream came before its client left is charged as well."""
        took_s, began = time.monotonic() - this.began_s, whole or this.streams
        self._decisions.ended(journey.accepted.run_id, this.no, took_s=took_s if whole else None)
        if not this.turned_away:
            self._queue.release(this.node, journey.accepted.run_id, took_s=took_s if began else None)

    def _answered(self, journey: Journey, this: Try) -> None:
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

    def _tell(self, reply: Reply, journey: Journey, this: Try) -> None:
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

    async def _next_try(self, journey: Journey) -> Try:
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
                    return Try(first, 1)
            node = await self._placed(ticket, journey)
            return Try(node, await self._catalog.runs.begin_attempt(run_id, node=node.name))
        except BaseException:
            # At once: to write down how it ended takes time.
            self._queue.withdraw(ticket)
            raise

    def _is_recorded_soon(self, row: NewRun) -> bool:
        """Whether a run may be sent before it is committed: one that a node can record all of, while there is a catalog."""
        return row.result_key is None and row.parent_id is None and self._catalog.runs.may_be_opened_soon

    async def _placed(self, ticket: Ticket, journey: Journey) -> Node:
        try:
            return await self._queue.granted(ticket)
        except AquatintError as error:
            raise last_word(journey.last, error) from None
