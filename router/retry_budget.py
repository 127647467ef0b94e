"""How many tries beyond the first a router may make, over all runs: a share of the runs, and a floor. Pure.

Where every run is tried three times, an outage is three times the load, just when the nodes can bear it least. So retries
are bought with runs, as in Finagle (2016, "Retry Budgets": 20 % of requests beside 10 a second, each credit good for 10 s)
and Envoy (`retry_budget`, 20 %). The floor is what a fleet with little load lives on: it suffices for all that a node or
several can lose at once.
"""

from collections import deque
from dataclasses import dataclass

SHARE = 0.2
FLOOR_PER_S = 10.0
WINDOW_S = 10.0
SLICES = 10
"""What is too old is forgotten in as many steps."""


@dataclass(slots=True)
class _Slice:
    """Of time, by its number: the credit that was earned or spent in it."""

    number: int
    credit: float = 0.0


class RetryBudget:
    """One router's. Times are on the caller's clock."""

    def __init__(self, *, share: float = SHARE, floor_per_s: float = FLOOR_PER_S) -> None:
        self._share = share
        self._floor = floor_per_s * WINDOW_S
        self._slices: deque[_Slice] = deque()

    def earn(self, now_s: float) -> None:
        """A run was accepted."""
        self._put(self._share, now_s)

    def spend(self, now_s: float) -> bool:
        """Whether one more try may be made; it is paid for then."""
        if self.left(now_s) < 1:
            return False
        self._put(-1.0, now_s)
        return True

    def left(self, now_s: float) -> float:
        """Tries that may be made now."""
        self._forget(now_s)
        return self._floor + sum(each.credit for each in self._slices)

    def _put(self, credit: float, now_s: float) -> None:
        number = int(now_s * SLICES / WINDOW_S)
        if not self._slices or self._slices[-1].number != number:
            self._forget(now_s)
            self._slices.append(_Slice(number))
        self._slices[-1].credit += credit

    def _forget(self, now_s: float) -> None:
        oldest = int(now_s * SLICES / WINDOW_S) - SLICES
        while self._slices and self._slices[0].number <= oldest:
            self._slices.popleft()
