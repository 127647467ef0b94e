"""Requests for pictures begin a few in each turn of the event loop, in the order in which they came.

To begin one costs about a millisecond. Hundreds that come at once would else begin in one and the same turn, and whatever
else is to be answered, `/health` among it, would wait for all of them. What many have waited for together, such as a look
into the catalog, brings them back together, and behind those that came after it: so each costly part of the beginning has
turns of its own, and goes by when a request came, not by when it came here. That one comes after another is not promised
here: a turn is anyone's who comes while nobody waits for it (`arrivals.py`).
"""

import asyncio
import heapq
from itertools import count

AT_ONCE = 4


class Turns:
    """Of one part."""

    def __init__(self) -> None:
        self._left = AT_ONCE
        """Requests that may still begin in this turn."""
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        """A heap, by when they came."""
        self._numbers = count()

    async def come(self, arrived_s: float) -> None:
        """Returns when it is this request's turn: at once, unless many came. arrived_s: on the monotonic clock."""
        if not self._left:
            turn = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (arrived_s, next(self._numbers), turn))
            await turn
            return
        if self._left == AT_ONCE:
            asyncio.get_running_loop().call_soon(self._next)
        self._left -= 1

    def _next(self) -> None:
        """The turn has ended in which any began."""
        self._left = AT_ONCE
        while self._waiting and self._left:
            _, _, turn = heapq.heappop(self._waiting)
            if not turn.done():  # Else its client has left.
                turn.set_result(None)
                self._left -= 1
        if self._left < AT_ONCE:
            asyncio.get_running_loop().call_soon(self._next)
