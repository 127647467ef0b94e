"""Whose wait ends without a node: because its time is over, or because no node can take it.

Those that ask for the same have the same prospects: one look at the nodes tells all of them. So what waiting costs hangs on
how much differs among those that wait, and not on how many they are.
"""

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from common.errors import AquatintError, NoCapacity, OutOfDeviceMemory, WaitedTooLong
from router.fleet import Fleet
from router.placement import NO_MODEL, Ask, Outlook, Placement
from router.ticket import Ticket

MIN_REMEMBERED = 512
"""Deadlines that are kept before those of runs that wait no more are looked for."""


@dataclass(slots=True, eq=False)
class _Alike:
    """All that ask for the same, by when they came, and since when no node could take them; None while one is only full."""

    ask: Ask
    """Of the first that came."""
    since_s: dict[Ticket, float] = field(default_factory=dict)
    stranded_since_s: float | None = None


class Prospects:
    """See the module. Times are on the monotonic clock."""

    def __init__(self, fleet: Fleet, *, no_capacity_wait_s: float, end: Callable[[Ticket, AquatintError], None]) -> None:
        """no_capacity_wait_s: how long a run waits for a node to come (back) that can take it. end: takes a run that waits
        no more out of here, and tells it why."""
        self._fleet = fleet
        self._no_capacity_wait_s = no_capacity_wait_s
        self._end = end
        self._alike: dict[tuple[Any, ...], _Alike] = {}
        self._deadlines: list[tuple[float, int, Ticket]] = []
        """A heap. Those of runs that wait no more are left where they are until they come first, or are too many."""
        self._numbers = count()
        self._kinds: dict[Ticket, _Alike] = {}
        """Of each that waits."""
        self._not_looked_at: deque[_Alike] = deque()

    def came(self, run: Ticket, now_s: float) -> None:
        """One more waits."""
        kind = _kind_of(run.ask)
        alike = self._alike.get(kind)
        if alike is None:
            alike = self._alike[kind] = _Alike(run.ask)
        alike.since_s[run] = now_s
        self._kinds[run] = alike
        heapq.heappush(self._deadlines, (run.deadline_s, next(self._numbers), run))
        if len(self._deadlines) > MIN_REMEMBERED + 2 * len(self._kinds):
            self._deadlines = [each for each in self._deadlines if each[2] in self._kinds]
            heapq.heapify(self._deadlines)

    def left(self, run: Ticket) -> None:
        """One waits no more."""
        alike = self._kinds.pop(run)
        del alike.since_s[run]
        if not alike.since_s:
            del self._alike[_kind_of(alike.ask)]

    def look_at(self, run: Ticket, now_s: float) -> None:
        """End the wait of one that just came, if that is hopeless. Where others wait for the same, it was not of late."""
        alike = self._kinds[run]
        if len(alike.since_s) == 1:
            self._look(alike, now_s, enough=lambda: False)

    def look(self, now_s: float, *, enough: Callable[[], bool]) -> bool:
        """End the wait of those whose time is over, or whom no node can take, until it is enough for this time.

        Returns: whether all were looked at.
        """
        while self._deadlines and self._deadlines[0][0] <= now_s and not enough():
            _, _, run = heapq.heappop(self._deadlines)
            if run in self._kinds:
                self._end(run, WaitedTooLong(own=run.own_deadline))
        if not self._not_looked_at:
            self._not_looked_at.extend(self._alike.values())
        while self._not_looked_at:
            alike = self._not_looked_at.popleft()
            if alike.since_s and not self._look(alike, now_s, enough=enough):
                self._not_looked_at.appendleft(alike)
            if enough():
                break
        return not self._not_looked_at

    def _look(self, alike: _Alike, now_s: float, *, enough: Callable[[], bool]) -> bool:
        """Whether all whose wait ends by it were told."""
        found = self._fleet.place(alike.ask, now_s)
        if found.outlook is Outlook.FULL:
            alike.stranded_since_s = None
            return True
        if alike.stranded_since_s is None:
            alike.stranded_since_s = now_s
        patience_s = 0.0 if found.outlook is Outlook.NONE else self._no_capacity_wait_s
        for run, since_s in list(alike.since_s.items()):
            if now_s - max(since_s, alike.stranded_since_s) < patience_s:
                # Those behind came later.
                return True
            self._end(run, _why(run.ask, found))
            if enough():
                return not alike.since_s
        return True


def _kind_of(ask: Ask) -> tuple[Any, ...]:
    """What hangs on it whether any node can take a run: not how much work it is."""
    return ask.model, ask.task, ask.loras, ask.pixels, ask.extras, ask.build, ask.tried


def _why(ask: Ask, found: Placement) -> AquatintError:
    hopeless = found.outlook is Outlook.NONE
    if hopeless and found.fits_px is not None and not ask.tried:
        return OutOfDeviceMemory(
            f"No node has the memory for pictures as large as this by model {ask.model!r}; going by what was seen, "
            f"{found.fits_px:,} pixels would fit.",
            param="size",
        )
    # A model that no node has now may come back, with a node that starts; what else is wrong with all of them stays.
    useless = hopeless and any(why != NO_MODEL for why in found.turned_away.values())
    return NoCapacity(ask.model, found.turned_away, hopeless=hopeless, useless=useless)
