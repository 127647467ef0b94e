"""What is predicted of all that wait, made anew from time to time, a while of it at a time: the loop has other work."""

import time
from collections.abc import Callable, Iterator
from itertools import islice

from router.fleet import Fleet
from router.forecast import Forecast
from router.line import Line
from router.ticket import Ticket

PER_S = 4000
"""Predictions that are made anew in a second, each some microseconds: the less often, the more they are."""
AT_A_TIME = 32
"""Predictions between two looks at the clock."""


class Foretelling:
    """See the module."""

    def __init__(self, line: Line[Ticket], fleet: Fleet) -> None:
        self.forecast = Forecast()
        """The last whole one: what joins the line is foreseen behind it."""
        self._line = line
        self._fleet = fleet
        self._began_s = 0.0
        self._left: Iterator[Ticket] | None = None
        """Those that the next forecast has not come to; None between two of them."""
        self._next = Forecast()
        self._since: list[Ticket] = []
        """Those that came since it was begun."""

    def joined(self, run: Ticket) -> None:
        """One more waits, as the last."""
        if self._left is not None:
            self._since.append(run)

    def go_on(self, *, enough: Callable[[], bool]) -> bool:
        """Predict anew, where it is time for it, until it is enough for this time. Returns: whether all is predicted."""
        now_s = time.monotonic()
        if self._left is None:
            if now_s < self._began_s + len(self._line) / PER_S:
                return True
            self._began_s, self._left, self._next, self._since = now_s, iter(list(self._line)), Forecast(), []
        while not enough():
            some = list(islice(self._left, AT_A_TIME))
            if some:
                self._predict(some)
            elif self._since:
                self._left, self._since = iter(self._since), []
            else:
                self.forecast, self._left = self._next, None
                return True
        return False

    def _predict(self, some: list[Ticket]) -> None:
        """What has a place by now is played all the same: the nodes of this forecast are those of when it was begun."""
        now_s = time.monotonic()
        for run, foreseen in zip(some, self._next.play_on(some, self._fleet, now_s), strict=True):
            if run in self._line:
                run.foreseen, run.foreseen_at_s = foreseen, now_s
