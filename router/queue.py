"""Where runs wait for a node. Late binding: a run is tied to a node only when that node has a place for it.

Bounded, first come first served among runs that can be placed; a run whose nodes are all full does not hold up
one behind it that another node can take.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from common.errors import DeadlineExceeded, NoCapacity, OutOfDeviceMemory, TooManyRequests, bounded_s
from router.placement import Ask, Outlook, Placement, place
from router.registry import Node, Registry

LOOK_AHEAD = 64
"""Waiting runs looked at when a place comes free; more would cost more than it finds."""


@dataclass(slots=True, eq=False)
class Ticket:
    """One waiting run."""

    run_id: str
    ask: Ask
    granted: asyncio.Future[Node] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    last: Placement | None = None
    stranded_since_s: float | None = None
    """Since when no node at all could take it, on the monotonic clock; None while some node is only full."""


class Queue:
    """Grants places. Every change that may free one ends in `pump`."""

    def __init__(self, registry: Registry, *, max_queued: int, depth: int, no_capacity_wait_s: float) -> None:
        self._registry = registry
        self._max_queued = max_queued
        self._depth = depth
        self._no_capacity_wait_s = no_capacity_wait_s
        self._waiting: list[Ticket] = []
        self._seconds_per_run = 1.0
        self.on_wait: Callable[[float], None] = lambda seconds: None
        registry.changed = self.pump

    def __len__(self) -> int:
        return len(self._waiting)

    def waiting(self) -> list[str]:
        """Ids of waiting runs, in their order."""
        return [ticket.run_id for ticket in self._waiting]

    def check_room(self) -> None:
        """Raises: TooManyRequests: as many runs wait as may."""
        if len(self._waiting) >= self._max_queued:
            wait_s = bounded_s(self._turnover_s())
            # In OpenAI's words, because old clients read the time out of them.
            raise TooManyRequests(
                f"Rate limit reached for requests that wait: {len(self._waiting)} of {self._max_queued} wait already. "
                f"Please try again in {wait_s}s.",
                retry_after_s=wait_s,
            )

    async def place(self, run_id: str, ask: Ask, *, deadline_s: float) -> Node:
        """Wait for a node; its place is taken until `release`. deadline_s: on the monotonic clock.

        Raises: NoCapacity: no node could take it for `no_capacity_wait_s`; OutOfDeviceMemory: it fits none that have the
        model; DeadlineExceeded.
        """
        ticket = Ticket(run_id, ask)
        began_s = time.monotonic()
        self._waiting.append(ticket)
        try:
            self.pump()
            while not ticket.granted.done():
                now_s = time.monotonic()
                if now_s >= deadline_s:
                    raise DeadlineExceeded("The request waited for a node until its time was over.", retryable=True)
                self._raise_if_stranded(ticket, now_s)
                # Woken by a grant; otherwise once a while, as "stranded" and "deadline" are about time passing.
                await asyncio.wait({ticket.granted}, timeout=min(0.25, deadline_s - now_s))
            self.on_wait(time.monotonic() - began_s)
            return ticket.granted.result()
        except BaseException:
            if ticket.granted.done() and not ticket.granted.cancelled():
                # Granted in the very moment the client left: give the place back.
                self.release(ticket.granted.result(), run_id)
            raise
        finally:
            if ticket in self._waiting:
                self._waiting.remove(ticket)

    def release(self, node: Node, run_id: str, *, took_s: float | None = None) -> None:
        """The run has left the node. took_s: how long it was there, if it succeeded."""
        node.ours.pop(run_id, None)
        if took_s is not None:
            self._seconds_per_run += 0.2 * (took_s - self._seconds_per_run)
        self.pump()

    def pump(self) -> None:
        """Give free places to waiting runs."""
        for ticket in self._waiting[:LOOK_AHEAD]:
            ticket.last = place(ticket.ask, self._registry.candidates(), depth=self._depth)
            if ticket.last.node_id is None:
                if ticket.last.outlook is Outlook.FULL:
                    ticket.stranded_since_s = None
                elif ticket.stranded_since_s is None:
                    ticket.stranded_since_s = time.monotonic()
                continue
            node = self._registry.get(ticket.last.node_id)
            node.ours[ticket.run_id] = (ticket.ask.model, ticket.ask.units)
            self._waiting.remove(ticket)
            ticket.granted.set_result(node)

    def _raise_if_stranded(self, ticket: Ticket, now_s: float) -> None:
        if ticket.last is None or ticket.stranded_since_s is None:
            return
        hopeless = ticket.last.outlook is Outlook.NONE
        if hopeless and ticket.last.fits_px is not None and not ticket.ask.tried:
            raise OutOfDeviceMemory(
                f"No node has the memory for pictures as large as this by model {ticket.ask.model!r}; going by what was "
                f"seen, {ticket.last.fits_px:,} pixels would fit.",
                param="size",
            )
        if hopeless or now_s - ticket.stranded_since_s >= self._no_capacity_wait_s:
            raise NoCapacity(ticket.ask.model, ticket.last.turned_away, hopeless=hopeless)

    def predicted_wait_s(self) -> float:
        """Seconds until a run accepted now would get its place, from how long runs took of late."""
        return self._turnover_s()

    def _turnover_s(self) -> float:
        places = sum(node.status.max_concurrency for node in self._registry.nodes() if node.status is not None) or 1
        return len(self._waiting) * self._seconds_per_run / places


def excluding(ask: Ask, node: Node) -> Ask:
    """The same ask, not for `node` again."""
    return replace(ask, tried=ask.tried | {node.id})
