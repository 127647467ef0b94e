"""The time that all processes of an installation agree on.

Signs of life, leases, expiries and the order of ids are written by one process and judged by another, on a machine whose
clock may be wrong, or be set while it works. So the present is the database's, carried on by this process's monotonic clock,
which nobody sets; `common.catalog` asks for it when a catalog is opened, and again every minute. With SQLite all processes
are on one machine, and the present is what its clock says; so it is until a catalog is opened.

One a process, as there is one catalog. Durations are never taken from here, but from `time.monotonic`.
"""

import time
from datetime import UTC, datetime

STALE_AFTER_S = 300.0
"""From then on a worse reading counts, too: the clocks themselves have gone apart by some milliseconds."""


class AgreedClock:
    """See the module."""

    def __init__(self) -> None:
        self._ahead_s: float | None = None
        """Of `time.monotonic`."""
        self._doubt_s = 0.0
        self._agreed_s = 0.0

    def now_s(self) -> float:
        """Seconds since 1970, UTC."""
        return time.time() if self._ahead_s is None else self._ahead_s + time.monotonic()

    def utc_now(self) -> datetime:
        """The same, aware."""
        return datetime.fromtimestamp(self.now_s(), UTC)

    def agree(self, told: datetime, *, asked_s: float) -> None:
        """Take the time over that another clock told just now, when asked at `asked_s` (monotonic).

        A reading that took longer than the last one, and says nothing else, is left aside: the time must not waver.
        """
        now_s = time.monotonic()
        doubt_s = (now_s - asked_s) / 2
        ahead_s = told.timestamp() - (asked_s + doubt_s)
        fits = self._ahead_s is not None and abs(ahead_s - self._ahead_s) <= doubt_s + self._doubt_s
        if fits and doubt_s >= self._doubt_s and now_s - self._agreed_s < STALE_AFTER_S:
            return
        self._ahead_s, self._doubt_s, self._agreed_s = ahead_s, doubt_s, now_s

    def stand_alone(self) -> None:
        """Trust this machine's clock again."""
        self._ahead_s = None


clock = AgreedClock()


def utc_now() -> datetime:
    """The present as all processes have it, aware."""
    return clock.utc_now()
