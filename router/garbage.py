"""Whole collections of cyclic garbage, made when few requests are open.

One of them looks at every object there is, which with 10,000 waiting requests takes half a second, in which nothing is
answered. By itself Python makes one whenever a quarter more objects have grown old, so the more often the more requests come.
What is young, which nearly all garbage is, Python collects as ever.
"""

import gc
import time
from collections.abc import Callable

LOOK_EVERY_S = 10.0
FEW = 256
"""Open requests with which a whole collection takes some ten milliseconds."""
MOST_S = 900.0
"""After so long one is made with any number of them: where a router is never quiet, memory must not grow for ever."""
_NEVER = 2**30


def make_no_whole_collections() -> None:
    """From now on, in this process: Python by itself. What there is now stays to the end, and is never looked at again."""
    gc.collect()
    gc.freeze()
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, _NEVER)


class Garbage:
    """Makes them instead."""

    def __init__(self, open_requests: Callable[[], int], *, most_s: float = MOST_S) -> None:
        self._open_requests = open_requests
        self._most_s = most_s
        self._collected_s = time.monotonic()

    async def look(self) -> None:
        """Make one, if this is the time for it."""
        now_s = time.monotonic()
        if self._open_requests() <= FEW or now_s - self._collected_s >= self._most_s:
            gc.collect()
            self._collected_s = now_s
