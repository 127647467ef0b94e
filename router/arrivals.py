"""Requests of one key enter the line in the order in which they came, whatever each of them waited for before.

On its way to the line a request may wait for the catalog: for its key, for an alias, for the answer to an earlier one. What
was found is then known to those who come next, and without this they would pass by while the first of them is still being
woken. So each waits, just before the line, until none that came earlier under the same secret is on its way.

A request has come when its last byte has. One that is refused, answered at once, or left by its client, is over, and nobody
waits for it.
"""

import asyncio
import time
from collections import OrderedDict

from common.catalog import new_id


class Arrivals:
    """Of one router."""

    def __init__(self) -> None:
        self._on_their_way: dict[str, OrderedDict[Arrival, None]] = {}
        """By the secret they came with, in the order of their coming."""

    def begun(self, secret: str) -> "Arrival":
        """A request whose head is there."""
        return Arrival(secret, self._on_their_way)


class Arrival:
    """One request, until it is in line."""

    __slots__ = ("_on_their_way", "_over", "_secret", "_turn", "at_s", "run_id")

    def __init__(self, secret: str, on_their_way: "dict[str, OrderedDict[Arrival, None]]") -> None:
        self._secret = secret
        self._on_their_way = on_their_way
        self._over = False
        self._turn: asyncio.Future[None] | None = None
        self.at_s = time.monotonic()
        """When it came, on the monotonic clock; while it is still coming, when it began to."""
        self.run_id = ""
        """Of the run that it asks for, once it has come: ids are in the order of coming."""

    def came(self) -> None:
        """Its last byte is there. To say so again changes nothing."""
        if not self._over and not self.run_id:
            self.at_s, self.run_id = time.monotonic(), new_id("run")
            self._on_their_way.setdefault(self._secret, OrderedDict())[self] = None

    def comes_later(self) -> None:
        """What it still waits for is its client's business: it comes when that is there, behind those that come meanwhile."""
        self._let_by()
        self.run_id = ""

    async def first(self) -> None:
        """Returns when none that came before it is on its way, and before any that came after it is let go."""
        these = self._on_their_way.get(self._secret)
        if these is not None and self in these and next(iter(these)) is not self:
            # One for all of its parts.
            self._turn = self._turn or asyncio.get_running_loop().create_future()
            await self._turn

    def over(self) -> None:
        """It is in line, or has ended. To say so again changes nothing."""
        if not self._over:
            self._over = True
            self._let_by()

    def _let_by(self) -> None:
        these = self._on_their_way.get(self._secret)
        if these is None or self not in these:
            return
        was_first = next(iter(these)) is self
        del these[self]
        if not these:
            del self._on_their_way[self._secret]
        elif was_first:
            turn = next(iter(these))._turn
            if turn is not None and not turn.done():  # Else its client has left, and it is over in a moment.
                turn.set_result(None)
