"""Where runs wait for a node. Late binding: a run is tied to a node only when that node has a place for it.

In which order is `line.py`'s business, who goes where `fleet.py`'s; here are the futures, the bounds and the clock. A run
whose best node is full does not hold up one behind it that another node can take.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from common.errors import AquatintError, DeadlineExceeded, NoCapacity, OutOfDeviceMemory, TooManyRequests, bounded_s
from common.node_api import Holding
from router.decisions import Pick, pick_of
from router.fleet import bind
from router.line import Line, Waiting
from router.placement import Ask, Outlook, Placement
from router.registry import Node, Registry

SWEEP_EVERY_S = 0.25
"""How often those that wait are looked at for what only time brings: deadlines, and nodes that do not come back."""


@dataclass(slots=True, eq=False, kw_only=True)
class Ticket(Waiting):
    """One waiting run."""

    run_id: str
    deadline_s: float
    granted: asyncio.Future[Node] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    stranded_since_s: float | None = None
    """Since when no node at all could take it, on the monotonic clock; None while some node is only full."""
    pick: Pick | None = None
    """Why it was given its node."""


class Queue:
    """Grants places. Every change that may free one ends in `pump`."""

    def __init__(self, registry: Registry, *, max_queued: int, no_capacity_wait_s: float) -> None:
        self._registry = registry
        self._max_queued = max_queued
        self._no_capacity_wait_s = no_capacity_wait_s
        self._line: Line[Ticket] = Line()
        self._granted: dict[str, Ticket] = {}
        self._sweeping: asyncio.TimerHandle | None = None
        self.on_wait: Callable[[float], None] = lambda seconds: None
        registry.changed = self.pump

    def __len__(self) -> int:
        return len(self._line)

    def waiting(self) -> list[str]:
        """Ids of waiting runs, in their order."""
        return [ticket.run_id for ticket in self._line]

    @property
    def work_s(self) -> float:
        """Predicted device seconds of all that waits."""
        return self._line.work_s

    def check_room(self) -> None:
        """Raises: TooManyRequests: as many runs wait as may."""
        if len(self._line) >= self._max_queued:
            wait_s = bounded_s(self._turnover_s())
            # In OpenAI's words, because old clients read the time out of them.
            raise TooManyRequests(
                f"Rate limit reached for requests that wait: {len(self._line)} of {self._max_queued} wait already. "
                f"Please try again in {wait_s}s.",
                retry_after_s=wait_s,
            )

    async def place(self, run_id: str, ask: Ask, *, key_id: str | None, deadline_s: float) -> Node:
        """Wait for a node; its place is taken until `release`. key_id: whose share of the devices it takes.
        deadline_s: on the monotonic clock.

        Raises: NoCapacity: no node could take it for `no_capacity_wait_s`; OutOfDeviceMemory: it fits none that have the
        model; DeadlineExceeded.
        """
        now_s, fleet = time.monotonic(), self._registry.fleet
        ticket = Ticket(ask, now_s, fleet.work_s(ask), key_id, run_id=run_id, deadline_s=deadline_s)
        fleet.demand.note(ask.model, ticket.work_s, now_s)
        self._line.add(ticket)
        try:
            self.pump()
            self._look_at(ticket, fleet.place(ask, now_s), now_s)
        except BaseException:
            self.withdraw(ticket)
            raise
        return await self.granted(ticket)

    async def granted(self, ticket: Ticket) -> Node:
        """The node of a run that is in line, once it has a place there. Cancelling takes it out of the line.

        Raises: as `place`.
        """
        began_s = time.monotonic()
        self._sweep_later()
        try:
            # Shielded, or a client that leaves would end the future while the ticket is still in line, to be granted.
            node = await asyncio.shield(ticket.granted)
        except BaseException:
            self.withdraw(ticket)
            raise
        self.on_wait(time.monotonic() - began_s)
        return node

    def withdraw(self, ticket: Ticket) -> None:
        """A run that waits no more: out of the line, or its place given back where it was granted in this very moment."""
        if ticket in self._line:
            self._line.leave(ticket)
        elif self._granted.get(ticket.run_id) is ticket:
            self.release(ticket.granted.result(), ticket.run_id)

    def turned_away(self, node: Node, run_id: str, holding: Holding | None) -> Ticket:
        """The node had no place for a run after all: it is in line again, where it was, and what it was charged given back.
        holding: what the node does instead."""
        ticket = self._granted.pop(run_id)
        self._line.correct(ticket, 0.0)
        ticket.granted, ticket.stranded_since_s = asyncio.get_running_loop().create_future(), None
        self._line.add(ticket)
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
        bind(self._line, self._registry.fleet, time.monotonic(), grant=self._grant)

    def _grant(self, ticket: Ticket, placement: Placement) -> None:
        assert placement.node_id is not None
        self._line.serve(ticket)
        now_s, fleet = time.monotonic(), self._registry.fleet
        ticket.pick = pick_of(placement, ticket.ask, fleet, now_s=now_s, waited_s=now_s - ticket.arrived_s)
        node = self._registry.get(placement.node_id)
        self._registry.sent(node, ticket.run_id, ticket.ask)
        self._granted[ticket.run_id] = ticket
        ticket.granted.set_result(node)

    def _sweep_later(self) -> None:
        if self._sweeping is None and len(self._line):
            self._sweeping = asyncio.get_running_loop().call_later(SWEEP_EVERY_S, self._sweep)

    def _sweep(self) -> None:
        """End the wait of those whose time is over, or whom no node can take. One look for all that ask for the same."""
        self._sweeping = None
        now_s, looks = time.monotonic(), dict[Ask, Placement]()
        for ticket in self._line:
            # What no node can take does not hang on how much work it is.
            alike = replace(ticket.ask, units=0.0)
            if alike not in looks:
                looks[alike] = self._registry.fleet.place(alike, now_s)
            self._look_at(ticket, looks[alike], now_s)
        self._sweep_later()

    def _look_at(self, ticket: Ticket, placement: Placement, now_s: float) -> None:
        if ticket.granted.done():
            return
        ended = self._why_ended(ticket, placement, now_s)
        if ended is not None:
            self._line.leave(ticket)
            ticket.granted.set_exception(ended)

    def _why_ended(self, ticket: Ticket, last: Placement, now_s: float) -> AquatintError | None:
        if now_s >= ticket.deadline_s:
            return DeadlineExceeded("The request waited for a node until its time was over.", retryable=True)
        if last.outlook is Outlook.FULL:
            ticket.stranded_since_s = None
            return None
        if ticket.stranded_since_s is None:
            ticket.stranded_since_s = now_s
        hopeless = last.outlook is Outlook.NONE
        if hopeless and last.fits_px is not None and not ticket.ask.tried:
            return OutOfDeviceMemory(
                f"No node has the memory for pictures as large as this by model {ticket.ask.model!r}; going by what was "
                f"seen, {last.fits_px:,} pixels would fit.",
                param="size",
            )
        if hopeless or now_s - ticket.stranded_since_s >= self._no_capacity_wait_s:
            return NoCapacity(ticket.ask.model, last.turned_away, hopeless=hopeless)
        return None

    def predicted_wait_s(self) -> float:
        """Seconds until a run accepted now would get its place, from how long runs took of late."""
        return self._turnover_s()

    def _turnover_s(self) -> float:
        """Predicted seconds until one of those that wait has a place."""
        places = sum(node.status.max_concurrency for node in self._registry.nodes() if node.status is not None) or 1
        return self._line.work_s / places


MAX_CHARGE = 10.0
"""What a run took is charged to its key up to this many times what was predicted: a node that hung is nobody's fault."""


def excluding(ask: Ask, node: Node) -> Ask:
    """The same ask, not for `node` again."""
    return replace(ask, tried=ask.tried | {node.id})
