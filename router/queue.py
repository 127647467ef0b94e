"""Where runs wait for a node. Late binding: a run is tied to a node only when that node has a place for it.

In which order is `line.py`'s business, who goes where `fleet.py`'s; here are the futures, the bounds and the clock. A run
whose best node is full does not hold up one behind it that another node can take.
"""

import asyncio
import time
from collections.abc import Callable
from itertools import islice, takewhile

from common.errors import AquatintError, DeadlineTooSoon, TooManyRequests, bounded_s
from common.node_api import Holding
from router.costs import Level
from router.decisions import Pick, pick_of
from router.fleet import bind
from router.forecast import Forecast, Foreseen
from router.foretelling import Foretelling
from router.line import Line
from router.placement import Ask, Outlook, Placement
from router.prospects import Prospects
from router.registry import Node, Registry
from router.ticket import Ticket
from router.wishes import Wishes

SWEEP_EVERY_S = 0.25
"""How often those that wait are looked at for what only time brings: deadlines, and nodes that do not come back."""
TURN_S = 0.004
"""How long that holds up everything else at most; what is left of it is done"""
REST_S = 0.04
"""after so long."""

LOOKED_THROUGH = 64
"""Places of the line in which the place of one that comes is looked for; further behind, it is taken to come last."""
LOOKS_OF_ONE = 2048
"""Nodes looked at to foresee what becomes of one that comes, about a millisecond; beyond, it follows who is before it."""


class Queue:
    """Grants places. Every change that may free one ends in `pump`."""

    def __init__(self, registry: Registry, *, max_queued: int, max_wait_s: float, no_capacity_wait_s: float) -> None:
        """max_wait_s: runs that would wait for longer, as predicted, are not let in."""
        self._registry = registry
        self._max_queued = max_queued
        self._max_wait_s = max_wait_s
        self._line: Line[Ticket] = Line()
        self._granted: dict[str, Ticket] = {}
        self._waiting: dict[str, Ticket] = {}
        self._prospects = Prospects(registry.fleet, no_capacity_wait_s=no_capacity_wait_s, end=self._end)
        self._foretelling = Foretelling(self._line, registry.fleet)
        self._beside: Level | None = None
        """What an answer takes beside the device: records, sending, the node's storing."""
        self._sweeping: asyncio.TimerHandle | None = None
        self.on_wait: Callable[[float, str], None] = lambda seconds, run_id: None
        registry.changed = self.pump

    def __len__(self) -> int:
        return len(self._line)

    @property
    def line(self) -> list[Ticket]:
        """Waiting runs, in their order."""
        return list(self._line)

    @property
    def work_s(self) -> float:
        """Predicted device seconds of all that waits."""
        return self._line.work_s

    def check_room(self, ask: Ask, *, key_id: str | None, wishes: Wishes) -> None:
        """Refuse what would wait in vain.

        Raises: TooManyRequests: as many runs wait as may, or it would wait for too long; DeadlineTooSoon.
        """
        waiting = len(self._line)
        if waiting >= self._max_queued:
            wait_s = bounded_s(self._turnover_s())
            raise _too_many(f"{waiting} of {self._max_queued} wait already", wait_s)
        if not waiting and wishes.deadline_s is None:
            return
        foreseen = self.foresee(ask, key_id=key_id, wishes=wishes)
        if foreseen.finish_s is None or not foreseen.sure:
            return
        if wishes.deadline_s is not None and foreseen.finish_s > wishes.deadline_s:
            raise DeadlineTooSoon(foreseen.finish_s, wishes.deadline_s, alone_s=foreseen.own_s)
        if foreseen.wait_s > self._max_wait_s:
            told = f"this one would wait for {foreseen.wait_s:.0f} s, and {self._max_wait_s:g} s is the most"
            raise _too_many(told, bounded_s(foreseen.wait_s - self._max_wait_s))

    def foresee(self, ask: Ask, *, key_id: str | None, wishes: Wishes) -> Foreseen:
        """What would become of a run that came now."""
        now_s, work_s = time.monotonic(), self._registry.fleet.work_s(ask)
        coming = Ticket(ask, now_s, work_s, key_id, wishes.priority, run_id="", deadline_s=now_s, since_s=now_s)
        self._line.add(coming)
        try:
            return self._with_beside(self._foresee(coming, now_s, keep=False), 0.0)
        finally:
            self._line.leave(coming)

    def _foresee(self, coming: Ticket, now_s: float, *, keep: bool) -> Foreseen:
        """Of a run that is in line as the last who came. keep: it stays."""
        fleet = self._registry.fleet
        if len(self._line) == 1:
            # What was foretold of those before it is over.
            self._foretelling.forecast = Forecast()
        if self._line.before_of_its_key(coming) > LOOKED_THROUGH:
            return self._foretelling.forecast.join(len(self._line), coming.ask, fleet, now_s, keep=keep)
        ahead = list(takewhile(lambda ticket: ticket is not coming, islice(self._line, LOOKED_THROUGH)))
        position, last = len(ahead) + 1, len(ahead) + 1 == len(self._line)
        if position <= LOOKED_THROUGH and position * fleet.count_having(coming.ask.model) <= LOOKS_OF_ONE:
            exact = Forecast()
            if keep and last:
                self._foretelling.forecast = exact
            return exact.play([*ahead, coming], fleet, now_s)[-1]
        if position > LOOKED_THROUGH or last or ahead[-1].foreseen is None:
            return self._foretelling.forecast.join(len(self._line), coming.ask, fleet, now_s, keep=keep)
        # Ahead of others, being short or of a key that had less: it follows the one before it.
        before = ahead[-1].foreseen
        alone = Forecast().join(position, coming.ask, fleet, now_s, keep=False)
        wait_s = max(0.0, before.wait_s - (now_s - ahead[-1].foreseen_at_s))
        finish_s = None if alone.finish_s is None else wait_s + alone.own_s
        return alone._replace(finish_s=finish_s, sure=alone.sure and before.sure)

    def foreseen(self, run_id: str) -> Foreseen | None:
        """What is predicted of a run that waits here or was sent from here, as of now; None of any other."""
        ticket = self._granted.get(run_id) or self._waiting.get(run_id)
        if ticket is None or ticket.foreseen is None:
            return None
        return self._with_beside(ticket.foreseen, time.monotonic() - ticket.foreseen_at_s)

    def foreseen_of(self, coming: Ticket) -> Foreseen | None:
        """The same of one that has entered in this moment; None where its wait has ended already."""
        return None if coming.foreseen is None else self._with_beside(coming.foreseen, 0.0)

    def _with_beside(self, found: Foreseen, since_s: float) -> Foreseen:
        """As the client will see it. since_s: seconds since it was foreseen."""
        if found.finish_s is None:
            return found
        beside_s = 0.0 if self._beside is None else self._beside.seconds
        return Foreseen(found.position, max(0.0, found.finish_s + beside_s - since_s), found.own_s, found.sure)

    def stranded(self, run_id: str) -> tuple[Ask, Placement] | None:
        """What a run asks for that waits here while no node could take it whether or not it had a place, and what placement
        says of each; None of any other run."""
        ticket = self._waiting.get(run_id)
        if ticket is None:
            return None
        found = self._registry.fleet.place(ticket.ask, time.monotonic())
        return None if found.outlook is Outlook.FULL else (ticket.ask, found)

    def answered(self, pick: Pick, total_s: float) -> None:
        """A run was answered, so long after it came. pick: that of its place."""
        if pick.terms.waiting_s == 0 and pick.terms.load_s == 0:
            beside_s = total_s - pick.waited_s - pick.terms.own_s
            self._beside = Level.first(beside_s) if self._beside is None else self._beside.after(beside_s)

    def enter(
        self, run_id: str, ask: Ask, *, key_id: str | None, wishes: Wishes, deadline_s: float, arrived_s: float | None = None
    ) -> Ticket:
        """A place in line, and at a node, if one is free: until `withdraw` or `release`. key_id: whose share of the devices it
        takes. deadline_s: when the wait ends at the latest; arrived_s: when its request came, now if absent. Both on the
        monotonic clock.
        """
        now_s, fleet = time.monotonic(), self._registry.fleet
        ticket = Ticket(
            ask,
            now_s if arrived_s is None else arrived_s,
            fleet.work_s(ask),
            key_id,
            wishes.priority,
            run_id=run_id,
            deadline_s=deadline_s,
            since_s=now_s,
            own_deadline=wishes.deadline_s is not None,
        )
        fleet.demand.note(ask.model, ticket.work_s, now_s)
        alone = not len(self._line)
        try:
            if alone and self._passes(ticket, now_s):
                return ticket
            self._enter(ticket)
            if not alone:
                self.pump()
            if ticket.node is None:
                self._prospects.look_at(ticket, now_s)
            if ticket in self._line:
                ticket.foreseen, ticket.foreseen_at_s = self._foresee(ticket, now_s, keep=True), now_s
                self._foretelling.joined(ticket)
        except BaseException:
            self.withdraw(ticket)
            raise
        return ticket

    async def granted(self, ticket: Ticket) -> Node:
        """The node of a run that is in line, once it has a place there. Cancelling takes it out of the line.

        Raises: NoCapacity: no node could take it for `no_capacity_wait_s`; OutOfDeviceMemory: it fits none that have the
        model; WaitedTooLong.
        """
        if ticket.node is None:
            assert ticket.granted is not None
            try:
                # Shielded, or a client that leaves would end the future while the ticket is still in line, to be granted.
                await asyncio.shield(ticket.granted)
            except BaseException:
                self.withdraw(ticket)
                raise
        assert ticket.node is not None
        return ticket.node

    def _passes(self, ticket: Ticket, now_s: float) -> bool:
        """Whether one that nobody waits before has a place at once. It gets what `_enter` and `pump` would give it, without
        having been in line; where it has none, `pump` would find none for it either."""
        fleet = self._registry.fleet
        placement = fleet.place(ticket.ask, now_s) if fleet.has_place else None
        if placement is None or not placement.has_place:
            return False
        ticket.entered_s = now_s
        self._line.pass_through(ticket)
        self._send(ticket, placement, now_s)
        return True

    def _enter(self, ticket: Ticket) -> None:
        ticket.node, ticket.granted = None, asyncio.get_running_loop().create_future()
        self._line.add(ticket)
        self._waiting[ticket.run_id] = ticket
        ticket.entered_s = time.monotonic()
        self._prospects.came(ticket, ticket.entered_s)
        self._sweep_later()

    def _quit(self, ticket: Ticket) -> None:
        self._line.leave(ticket)
        self._waiting.pop(ticket.run_id, None)
        self._prospects.left(ticket)

    def _end(self, ticket: Ticket, error: AquatintError) -> None:
        self._quit(ticket)
        assert ticket.granted is not None
        ticket.granted.set_exception(error)
        ticket.granted.exception()  # Looked at, so that asyncio does not report as overlooked what came to one who left.

    def withdraw(self, ticket: Ticket) -> None:
        """A run that waits no more: out of the line, or its place given back where it was granted in this very moment."""
        if ticket in self._line:
            self._quit(ticket)
        elif self._granted.get(ticket.run_id) is ticket:
            assert ticket.node is not None
            self.release(ticket.node, ticket.run_id)

    def turned_away(self, node: Node, run_id: str, holding: Holding | None) -> Ticket:
        """The node had no place for a run after all: it is in line again, where it was, and what it was charged given back.
        holding: what the node does instead."""
        ticket = self._granted.pop(run_id)
        self._line.correct(ticket, 0.0)
        self._enter(ticket)
        self._registry.turned_away(node, run_id, holding)
        self.pump()
        return ticket

    def pick(self, run_id: str) -> Pick:
        """Why a run that has its place was given it."""
        ticket = self._granted[run_id]
        assert ticket.pick is not None
        return ticket.pick

    def release(self, node: Node, run_id: str, *, took_s: float | None = None) -> None:
        """The run has left the node. took_s: how long it was there, if it succeeded."""
        self._registry.ended(node, run_id)
        ticket = self._granted.pop(run_id, None)
        if ticket is not None:
            self._line.correct(ticket, 0.0 if took_s is None else min(took_s, MAX_CHARGE * ticket.work_s))
        self.pump()

    def pump(self) -> None:
        """Give free places to waiting runs."""
        if len(self._line):
            bind(self._line, self._registry.fleet, time.monotonic(), grant=self._grant)

    def _grant(self, ticket: Ticket, placement: Placement) -> None:
        self._line.serve(ticket)
        self._waiting.pop(ticket.run_id, None)
        self._prospects.left(ticket)
        self._send(ticket, placement, time.monotonic())
        assert ticket.granted is not None
        ticket.granted.set_result(None)

    def _send(self, ticket: Ticket, placement: Placement, now_s: float) -> None:
        """A run that is in line no more has its place at a node."""
        terms, node_id = placement.terms, placement.node_id
        assert terms is not None
        assert node_id is not None
        ticket.foreseen, ticket.foreseen_at_s = Foreseen(0, terms.finish_s, terms.load_s + terms.own_s), now_s
        waited_s = now_s - ticket.since_s
        ticket.pick = pick_of(placement, ticket.ask, self._registry.fleet, now_s=now_s, waited_s=waited_s)
        ticket.node = self._registry.get(node_id)
        self._registry.sent(ticket.node, ticket.run_id, ticket.ask)
        self._granted[ticket.run_id] = ticket
        self.on_wait(now_s - ticket.entered_s, ticket.run_id)

    def _sweep_later(self, seconds: float = SWEEP_EVERY_S) -> None:
        if self._sweeping is None and len(self._line):
            self._sweeping = asyncio.get_running_loop().call_later(seconds, self._sweep)

    def _sweep(self) -> None:
        """End the wait of those whose time is over, or whom no node can take, and predict anew what becomes of the others."""
        until_s = time.monotonic() + TURN_S

        def enough() -> bool:
            return time.monotonic() >= until_s

        looked = self._prospects.look(time.monotonic(), enough=enough)
        foretold = self._foretelling.go_on(enough=enough)
        self._sweeping = None
        self._sweep_later(SWEEP_EVERY_S if looked and foretold else REST_S)

    def predicted_wait_s(self) -> float:
        """Seconds until a run accepted now would get its place, from how long runs took of late."""
        return self._turnover_s()

    def _turnover_s(self) -> float:
        """Predicted seconds until one of those that wait has a place."""
        places = sum(node.status.max_concurrency for node in self._registry.nodes() if node.status is not None) or 1
        return self._line.work_s / places


def _too_many(why: str, retry_after_s: int) -> TooManyRequests:
    # In OpenAI's words, because old clients read the time out of them.
    told = f"Rate limit reached for requests that wait: {why}. Please try again in {retry_after_s}s."
    return TooManyRequests(told, retry_after_s=retry_after_s)


MAX_CHARGE = 10.0
"""What a run took is charged to its key up to this many times what was predicted: a node that hung is nobody's fault."""


def excluding(ask: Ask, node: Node) -> Ask:
    """The same ask, not for `node` again."""
    return ask._replace(tried=ask.tried | {node.id})
