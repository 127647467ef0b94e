"""Writes that nobody waits for: a moment after they came, all together; whoever asks for one of them waits until it is written.

A commit costs the same however many share it, so requests that come one after the other need not pay for one each.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Generic, TypeVar

from common.catalog.grouped import MOST, AtOnce, is_written_at_once
from common.errors import AquatintError, CatalogUnavailable
from common.logs import get_logger

log = get_logger(__name__)

T = TypeVar("T")

WITHIN_S = 0.02
"""How long an item waits for others: less than the quickest picture takes, and enough for a commit to be a small part of what
is spent on those who share it."""
AGAIN_AFTER_S = 1.0
"""How long a database that did not take the items is left alone."""


class WritesBehind(Generic[T]):
    """Items by key, until they are written. Writing one that the database has already must change nothing."""

    def __init__(self, write: Callable[[Sequence[T]], Awaitable[None]], *, at_once: AtOnce[T] | None) -> None:
        """at_once: as of `GroupedWrites`."""
        self._write = write
        self._at_once = at_once
        self._waiting: dict[str, T] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._writer: asyncio.Task[None] | None = None
        self._error: CatalogUnavailable | None = None

    @property
    def falls_behind(self) -> bool:
        """Whether the database did not take the last items. They are offered to it again and again."""
        return self._error is not None

    def put(self, key: str, item: T) -> None:
        """Have an item written within `WITHIN_S`."""
        self._waiting[key] = item
        if self._timer is None and self._writer is None:
            self._timer = asyncio.get_running_loop().call_later(WITHIN_S, self._begin)

    def drop(self, key: str) -> None:
        """An item need not be written any more."""
        self._waiting.pop(key, None)

    async def written(self, key: str) -> None:
        """Returns when the item of this key, if there is one, is written. Raises: CatalogUnavailable."""
        if key in self._waiting:
            await self._now(lambda: key in self._waiting)

    async def all_written(self) -> None:
        """The same for every item that is here now. Raises: CatalogUnavailable."""
        if keys := set(self._waiting):
            await self._now(lambda: not keys.isdisjoint(self._waiting))

    async def close(self) -> None:
        """Have all of them written, and offer none again. Raises: CatalogUnavailable: those that are left are lost."""
        try:
            await self.all_written()
        finally:
            if self._timer is not None:
                self._timer.cancel()

    async def _now(self, waits: Callable[[], bool]) -> None:
        if self._writer is None:
            self._begin()
        while waits():
            if self._writer is None:
                raise self._error or CatalogUnavailable
            await asyncio.wait({self._writer})

    def _begin(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        items = list(self._waiting.values())
        if self._error is None and is_written_at_once(self._at_once, items):
            self._waiting.clear()
        elif items:
            self._writer = asyncio.create_task(self._write_all(), name="writes behind")

    async def _write_all(self) -> None:
        try:
            while group := list(islice(self._waiting.items(), MOST)):
                await self._write_group(group)
                self._error = None
        except CatalogUnavailable as error:
            if self._error is None:
                log.warning("written_later", items=len(self._waiting), why=error.message)
            self._error = error
            self._timer = asyncio.get_running_loop().call_later(AGAIN_AFTER_S, self._begin)
        finally:
            self._writer = None

    async def _write_group(self, group: Sequence[tuple[str, T]]) -> None:
        """Raises: CatalogUnavailable."""
        try:
            await self._write([item for _, item in group])
        except CatalogUnavailable:
            raise
        except AquatintError as error:
            if len(group) > 1:
                # One item that the database cannot hold must not cost the others their commit.
                for entry in group:
                    await self._write_group([entry])
                return
            log.warning("not_written", item=group[0][0], why=error.message)
        for key, _ in group:
            self.drop(key)
