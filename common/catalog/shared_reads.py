"""One reading for all who ask for the same at the same time: what many requests need expires for all of them at once."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

K = TypeVar("K")
T = TypeVar("T")


class SharedReads(Generic[K, T]):
    """Readings that are under way, by what they read."""

    def __init__(self, read: Callable[[K], Coroutine[Any, Any, T]]) -> None:
        self._read = read
        self._under_way: dict[K, asyncio.Task[T]] = {}

    async def get(self, key: K) -> T:
        """What `read` gives. It goes on when the caller is cancelled, for others wait too. Raises: what `read` raises."""
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.create_task(self._read(key))
            task.add_done_callback(lambda done: self._ended(key, done))
        return await asyncio.shield(task)

    def forget(self) -> None:
        """Who asks from now on waits for no reading that began before: something has changed."""
        self._under_way.clear()

    def _ended(self, key: K, task: asyncio.Task[T]) -> None:
        if self._under_way.get(key) is task:
            del self._under_way[key]
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio does not report it where all callers have left
