"""Group commit: writes that come while one is under way wait for it and are then committed together.

A commit costs a flush of the disk, whoever shares it; one by one they would queue for it. So one that comes waits for those
that come in the same turn of the event loop.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Generic, TypeVar

from common.catalog.futures import settle
from common.errors import AquatintError

T = TypeVar("T")

MOST = 200
"""Items in one commit: SQLite's lock is not held for long."""


AtOnce = Callable[[Sequence[T]], bool]
"""Commits items where nothing has to be waited for. Returns: whether it did; if not, nothing is left of it."""


def is_written_at_once(at_once: AtOnce[T] | None, items: Sequence[T]) -> bool:
    """Try it, where it can be done and one commit holds the items. Returns: whether they are committed."""
    if at_once is None or not 0 < len(items) <= MOST:
        return False
    try:
        return at_once(items)
    except Exception:
        # What is tried next meets it as well, and tells those whom it concerns. Nobody hears of it here, and all would wait
        # for ever.
        return False


class GroupedWrites(Generic[T]):
    """Items are handed on in groups, in their order; one group at a time."""

    def __init__(self, write: Callable[[Sequence[T]], Awaitable[None]], *, at_once: AtOnce[T] | None = None) -> None:
        """at_once: tried before `write`, as what needs no waiting needs no task."""
        self._write = write
        self._at_once = at_once
        self._waiting: dict[asyncio.Future[None], T] = {}
        """In their order. One that leaves is found at once: as many may leave together as wait."""
        self._is_begun = False
        """Whether what waits will be written without anybody's asking."""
        self._writer: asyncio.Task[None] | None = None
        self._under_way: asyncio.Future[None] | None = None
        """Done when the group is that is being written."""

    async def put(self, item: T) -> None:
        """Returns when the item is committed. When cancelled, it has either been committed or never will be.

        Raises: what `write` raises for this item.
        """
        loop = asyncio.get_running_loop()
        committed = loop.create_future()
        self._waiting[committed] = item
        if not self._is_begun:
            self._is_begun = True
            # With all that come before the loop's next turn.
            loop.call_soon(self._begin)
        try:
            await committed
        except asyncio.CancelledError:
            if committed in self._waiting:
                del self._waiting[committed]
            elif self._under_way is not None:
                await asyncio.wait({self._under_way})
            raise

    def _begin(self) -> None:
        if is_written_at_once(self._at_once, list(self._waiting.values())):
            written = list(self._waiting)
            self._waiting.clear()
            for committed in written:
                settle(committed, None)
        if self._waiting:
            self._writer = asyncio.create_task(self._write_all(), name="grouped writes")
        else:
            self._is_begun = False

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                group = list(islice(self._waiting.items(), MOST))
                for committed, _ in group:
                    del self._waiting[committed]
                self._under_way = asyncio.get_running_loop().create_future()
                try:
                    await self._write_group(group)
                finally:
                    self._under_way.set_result(None)
                    for committed, _ in group:
                        committed.cancel()  # Where it is not done, as this task was cancelled: the process is about to end.
        finally:
            self._is_begun = False

    async def _write_group(self, group: Sequence[tuple[asyncio.Future[None], T]]) -> None:
        try:
            await self._write([item for _, item in group])
        except Exception as error:
            if len(group) > 1 and isinstance(error, AquatintError) and error.status < 500:
                # One item that the database cannot hold must not cost the others their commit.
                for entry in group:
                    await self._write_group([entry])
                return
            for committed, _ in group:
                settle(committed, None, error)
            return
        for committed, _ in group:
            settle(committed, None)
