"""Ids of what the catalog keeps: a prefix and a ULID (https://github.com/ulid/spec), as in `run_01KAX3M2ZC5R9W7TQ4B8H0DVEN`.

A ULID is 26 digits of Crockford's base 32: ten for the milliseconds since 1970, and sixteen that may be random. Of those two
tell the time on, in 1/1024 ms, so that the ids of one process sort in the order in which they were made; the other fourteen
are 70 random bits, so that nobody can tell from one id what the next will be.
"""

import os

from common.clock import clock

DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
TICKS_A_SECOND = 1_024_000

_PAIRS = [first + second for first in DIGITS for second in DIGITS]
"""The two digits of 0..1023."""
_OF_BYTES = (DIGITS * 8).encode()
"""The digit that a random byte stands for: its lower five bits."""


class Ids:
    """Those that one process gives."""

    def __init__(self) -> None:
        self._last = 0

    def new(self, prefix: str) -> str:
        """A new id. They sort by time of creation, those of one process even within a tick of the clock.

        Where the clock is set back by more than a second, they follow it.
        """
        tick = int(clock.now_s() * TICKS_A_SECOND)
        if tick <= self._last < tick + TICKS_A_SECOND:
            tick = self._last + 1
        self._last = tick
        high = f"{_PAIRS[tick >> 50]}{_PAIRS[tick >> 40 & 1023]}{_PAIRS[tick >> 30 & 1023]}"
        low = f"{_PAIRS[tick >> 20 & 1023]}{_PAIRS[tick >> 10 & 1023]}{_PAIRS[tick & 1023]}"
        return f"{prefix}_{high}{low}{os.urandom(14).translate(_OF_BYTES).decode()}"


new_id = Ids().new
