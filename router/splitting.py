"""One request over several nodes: its pictures are made in parts where `plan.py` predicts that they are done sooner.

To its client it is one run: its id, its pictures in order with the seeds they would have had, its usage, one bill. Each
part is a run of its own below it (`common/catalog/parts.py`) and goes the way of every run: queue, placement, fail-over,
fencing. A part that fails for good fails the request, and the others are ended; so are all when the client leaves.

All parts are made by nodes that make the same pictures. Where those are gone and another could make the whole, it does: at
once while no part is made, else once a part has waited in vain for as long as any run does. Its client has seen none of it.

Not split: what waits behind others (there is no idle node for it), what asks for `exact`, streams (they have one picture),
and a run that was carried before.
"""

import asyncio
import json
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from common.catalog import AttemptFenced, Catalog, RunRecord
from common.catalog.parts import part_id
from common.errors import AquatintError, NodeFailed
from common.images_api import ResponseFormat
from common.logs import get_logger
from common.node_api import RUN_ID_HEADER
from common.web.background import ended
from router.answers import Answers
from router.body import Whole
from router.decisions import DECISION_HEADER, Decisions
from router.dispatch import Dispatcher
from router.ending import close
from router.fleet import Fleet
from router.forecast import ETA_HEADER, POSITION_HEADER
from router.joined import PartAnswer, body_of, effective_of, head_of, length_of, timings_of
from router.metrics import RouterMetrics
from router.placement import Ask, Outlook
from router.plan import Plan
from router.queue import Queue
from router.relay import Accepted, Reply, answer_headers, may_pass, row_of
from router.turns import Turns

log = get_logger(__name__)

PARTS_HEADER = "x-parts"
LOOK_EVERY_S = 0.25
"""How often parts that wait are looked at: whether there still are nodes that could take them."""


class _BetterAsOne(Exception):
    """A part waits for nodes that are gone, while another could take the whole. ask: for the whole."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask


class _PartRefused(Exception):
    """A node said of a part that the request is wrong."""

    def __init__(self, part: Accepted, reply: Reply) -> None:
        self.part = part
        self.reply = reply


class Splitter:
    """Stands before the dispatcher. One a router."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        catalog: Catalog,
        queue: Queue,
        fleet: Fleet,
        answers: Answers,
        decisions: Decisions,
        metrics: RouterMetrics,
        allowed: bool,
    ) -> None:
        """allowed: whether runs may be made in parts at all."""
        self._dispatcher = dispatcher
        self._catalog = catalog
        self._queue = queue
        self._fleet = fleet
        self._answers = answers
        self._decisions = decisions
        self._metrics = metrics
        self._allowed = allowed
        self._turns = Turns()

    def plan(self, accepted: Accepted) -> Plan | None:
        """How the run would be made in parts if it came now; None where it would be made as one."""
        if not self._may_be_split(accepted):
            return None
        plan = self._fleet.plan(accepted.ask, time.monotonic())
        deadline_s = accepted.wishes.deadline_s
        return None if plan is None or (deadline_s is not None and plan.finish_s > deadline_s) else plan

    def _may_be_split(self, accepted: Accepted) -> bool:
        request, forbidden = accepted.request, not self._allowed or accepted.whole
        return request.n > 1 and not (forbidden or request.stream or request.exact or len(self._queue))

    def run(self, accepted: Accepted) -> Coroutine[Any, Any, Reply]:
        """Dispatch to the end, in parts where that is sooner: returns when all pictures are made.

        Raises: as `Dispatcher.run`. Cancelling the caller cancels the run with all its parts.
        """
        return self._run(accepted) if self._may_be_split(accepted) else self._dispatcher.run(accepted)

    async def _run(self, accepted: Accepted) -> Reply:
        await self._turns.come(accepted.arrived_s)
        if accepted.arrival is not None:
            await accepted.arrival.first()
        plan = self.plan(accepted)
        if plan is None:
            return await self._dispatcher.run(accepted)
        earlier = await self._catalog.runs.open(row_of(accepted), accepted.claim)
        if earlier is not None:
            return await self._answers.replay(earlier, stream=False, public_url=accepted.public_url)
        log.info("run_split", run_id=accepted.run_id, pictures=[part.pictures for part in plan.parts])
        self._decisions.split(accepted.run_id, plan)
        began_s, outcome = time.monotonic(), "failed"
        self._dispatcher.held[accepted.run_id] = accepted
        try:
            reply = await self._to_the_end(accepted, plan)
            outcome = _outcome_of(reply)
            return reply
        except asyncio.CancelledError:
            outcome = "cancelled"
            if not accepted.lasting:
                await asyncio.shield(close(self._catalog, accepted.run_id, self._dispatcher.why_cancelled(accepted)))
            raise
        except AquatintError as error:
            error.run_id = accepted.run_id
            if not (accepted.lasting and may_pass(error)):
                await close(self._catalog, accepted.run_id, error)
            raise
        finally:
            self._dispatcher.let_go(accepted)
            self._metrics.split(outcome)
            took_s = time.monotonic() - began_s if outcome == "succeeded" else None
            self._decisions.ended(accepted.run_id, 0, took_s=took_s)

    async def _to_the_end(self, accepted: Accepted, plan: Plan) -> Reply:
        try:
            replies = await self._made(accepted, plan)
        except _BetterAsOne as better:
            log.info("run_made_as_one", run_id=accepted.run_id)
            return await self._dispatcher.run(accepted._replace(ask=better.ask, claim=None, recorded=True, whole=True))
        except _PartRefused as refused:
            part = await self._catalog.runs.get(refused.part.run_id)
            message = part.error_message or "A node refused it."
            await self._catalog.runs.fail(accepted.run_id, code=part.error_code or "refused", message=message)
            reply = refused.reply
            return Reply(reply.status, {**reply.headers, RUN_ID_HEADER: accepted.run_id}, reply.body)
        try:
            return await self._joined(accepted, plan, replies)
        except BaseException:
            await _discard(replies)
            raise

    async def _made(self, accepted: Accepted, plan: Plan) -> list[Reply]:
        """The answers to all parts, whose pictures are then stored; of none of them if one fails."""
        tasks = {asyncio.create_task(self._dispatcher.run(part)): part for part in _parts_of(accepted, plan)}
        waiting = set(tasks)
        try:
            while waiting:
                done, waiting = await asyncio.wait(waiting, timeout=LOOK_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if (reply := self._reply_of(task, accepted, plan)).status != 200:
                        raise _PartRefused(tasks[task], reply)
                if len(waiting) == len(tasks):
                    self._look_at_stranded(accepted, list(tasks.values()))
            return [task.result() for task in tasks]
        except BaseException as error:
            await asyncio.gather(*map(ended, tasks))
            made = [task.result() for task in tasks if not task.cancelled() and task.exception() is None]
            told = error.reply if isinstance(error, _PartRefused) else None
            await _discard([reply for reply in made if reply is not told])
            raise

    def _reply_of(self, task: asyncio.Task[Reply], accepted: Accepted, plan: Plan) -> Reply:
        """To one part. Raises: what the part ended with; _BetterAsOne."""
        try:
            return task.result()
        except AquatintError as error:
            alike = self._fleet.place(plan.ask, time.monotonic())
            if may_pass(error) and alike.outlook is not Outlook.FULL and self._could_be_made(accepted.ask):
                raise _BetterAsOne(accepted.ask) from error
            raise

    def _look_at_stranded(self, accepted: Accepted, parts: Sequence[Accepted]) -> None:
        """Raises: _BetterAsOne."""
        for stranded in filter(None, (self._queue.stranded(part.run_id) for part in parts)):
            # What a node did to a part it may do to the whole.
            ask = accepted.ask._replace(tried=stranded[0].tried)
            if self._could_be_made(ask):
                raise _BetterAsOne(ask)

    def _could_be_made(self, ask: Ask) -> bool:
        return self._fleet.place(ask, time.monotonic()).node_id is not None

    async def _joined(self, accepted: Accepted, plan: Plan, replies: Sequence[Reply]) -> Reply:
        """One run and one answer out of those of its parts."""
        parts = (await self._catalog.runs.get(accepted.run_id)).parts
        head = head_of(accepted.run_id, parts)
        try:
            await self._catalog.parts.join(
                accepted.run_id, effective=effective_of(parts), timings=timings_of(parts), answer=head
            )
        except AttemptFenced:
            # Cancelled by another router, or swept while the catalog could not hear that it was alive.
            raise NodeFailed("The run was interrupted.", code="interrupted", retryable=True, retry_after_s=1) from None
        headers = _headers(accepted, plan, replies)
        if accepted.request.response_format is ResponseFormat.URL:
            # Links are signed for the second that the answer names, which is one for all.
            await _discard(replies)
            run = await self._catalog.runs.get(accepted.run_id)
            return Reply(200, headers, Whole(await self._answers.body(run, accepted.public_url)))
        answers = [await self._part_answer(*each, accepted) for each in zip(parts, replies, strict=True)]
        return Reply(200, headers | {"content-length": str(length_of(head, answers))}, body_of(head, answers))

    async def _part_answer(self, part: RunRecord, reply: Reply, accepted: Accepted) -> PartAnswer:
        length = reply.headers.get("content-length")
        if length is not None:
            return PartAnswer(part.answer or {}, reply.body, int(length))
        # It was found in the catalog, when its node was lost.
        await _discard([reply])
        body = await self._answers.body(part, accepted.public_url)
        return PartAnswer(part.answer or {}, Whole(body), len(body))


def _parts_of(accepted: Accepted, plan: Plan) -> list[Accepted]:
    """What is dispatched for each part: image i of the whole is made from its seed + i, whoever makes it."""
    parts, request, first = list[Accepted](), accepted.request, 0
    assert request.seed is not None
    for index, ask in enumerate(plan.asks()):
        part = request._replace(n=ask.pictures, seed=request.seed + first)
        first += ask.pictures
        parts.append(
            accepted._replace(
                run_id=part_id(accepted.run_id, index),
                request=part,
                ask=ask,
                claim=None,
                recorded=False,
                result_key=None,
                lasting=False,
                parent_id=accepted.run_id,
            )
        )
    return parts


def _headers(accepted: Accepted, plan: Plan, replies: Sequence[Reply]) -> dict[str, str]:
    """Of the whole answer: those of one, and what the parts tell."""
    headers = answer_headers(accepted) | {PARTS_HEADER: "+".join(str(part.pictures) for part in plan.parts)}
    last = max(replies, key=lambda reply: float(reply.headers.get(ETA_HEADER, 0)))
    told = {name: last.headers[name] for name in (POSITION_HEADER, ETA_HEADER, "x-ignored-params") if name in last.headers}
    if accepted.debug:
        shown = [json.loads(reply.headers[DECISION_HEADER]) for reply in replies]
        told[DECISION_HEADER] = json.dumps(plan.told() | {"decisions": shown}, separators=(",", ":"))
    return headers | told


def _outcome_of(reply: Reply) -> str:
    if reply.status != 200:
        return "refused"
    return "succeeded" if PARTS_HEADER in reply.headers else "as_one"


async def _discard(replies: Sequence[Reply]) -> None:
    """Let go of answers that nobody reads: their connections are closed or given back."""
    for reply in replies:
        await reply.body.aclose()
