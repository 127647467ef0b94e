"""Group commit: writes that come while one is under way wait for it and are then committed together.

A commit costs a flush of the disk, whoever shares it; one by one they would queue for it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Generic, TypeVar

from common.errors import AquatintError

T = TypeVar("T")

MOST = 200
"""Items in one commit: SQLite's lock is not held for long."""


class GroupedWrites(Generic[T]):
    """Items are handed to `write` in groups, in their order; one group at a time."""

    def __init__(self, write: Callable[[Sequence[T]], Awaitable[None]]) -> None:
        self._write = write
        self._waiting: dict[asyncio.Future[None], T] = {}
        """In their order. One that leaves is found at once: as many may leave together as wait."""
        self._writer: asyncio.Task[None] | None = None
        self._under_way: asyncio.Future[None] | None = None
        """Done when the group is that is being written."""

    async def put(self, item: T) -> None:
        """Returns when the item is committed. When cancelled, it has either been committed or never will be.

        Raises: what `write` raises for this item.
        """
        committed = asyncio.get_running_loop().create_future()
        self._waiting[committed] = item
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_all(), name="grouped writes")
        try:
            await committed
        except asyncio.CancelledError:
            if committed in self._waiting:
                del self._waiting[committed]
            elif self._under_way is not None:
                await asyncio.wait({self._under_way})
            raise

    async def _write_all(self) -> None:
        while self._waiting:
            group = [(item, committed) for committed, item in islice(self._waiting.items(), MOST)]
            for _, committed in group:
                del self._waiting[committed]
            self._under_way = asyncio.get_running_loop().create_future()
            try:
                await self._write_group(group)
            finally:
                self._under_way.set_result(None)
                for _, committed in group:
                    committed.cancel()  # Where it is not done, as this task was cancelled: the process is about to end.

    async def _write_group(self, group: list[tuple[T, asyncio.Future[None]]]) -> None:
        try:
            await self._write([item for item, _ in group])
        except Exception as error:
            if len(group) > 1 and isinstance(error, AquatintError) and error.status < 500:
                # One item that the database cannot hold must not cost the others their commit.
                for entry in group:
                    await self._write_group([entry])
                return
            for _, committed in group:
                if not committed.done():  # Cancelled.
                    committed.set_exception(error)
            return
        for _, committed in group:
            if not committed.done():
                committed.set_result(None)
