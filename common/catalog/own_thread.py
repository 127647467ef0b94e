"""Calls one after another on a thread of their own, for work that is shorter than an executor's way to its thread and back.

That way, through a lock, a condition and two futures, costs the event loop twice as much as this one: a queue written in C,
and one call back into the loop.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from common.catalog.futures import settle

T = TypeVar("T")

_Work = Callable[[], Any]


class OwnThread:
    """Begins with the first call. It does not keep its process from ending."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[tuple[_Work, asyncio.Future[Any]] | None] = SimpleQueue()
        self._thread: Thread | None = None

    async def call(self, work: Callable[[], T]) -> T:
        """What `work` returns, once it is done there. Cancelled, it is done all the same. Raises: what `work` raises."""
        if self._thread is None:
            self._thread = Thread(target=self._make_calls, name=self._name, daemon=True)
            self._thread.start()
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._calls.put((work, done))
        return await done

    def end(self) -> None:
        """When all calls are made."""
        if self._thread is not None:
            self._calls.put(None)

    def _make_calls(self) -> None:
        while (call := self._calls.get()) is not None:
            _make(*call)
            del call  # It holds what was written, until the next comes.


def _make(work: _Work, done: asyncio.Future[Any]) -> None:
    found: Any = None
    error: BaseException | None = None
    try:
        found = work()
    except BaseException as raised:
        error = raised
    # Where its loop is closed nobody waits for it any more.
    with suppress(RuntimeError):
        done.get_loop().call_soon_threadsafe(settle, done, found, error)
