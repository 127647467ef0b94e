"""A body of known length, moved from one socket to another by the kernel: none of its bytes comes into this process.

Linux's splice(2), through a pipe: of a picture, pages change hands where reading and writing would copy them twice.
"""

import asyncio
import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Protocol, Self

POSSIBLE = hasattr(os, "splice")
LEAST_BYTES = 256 * 1024
"""Of shorter bodies the making ready costs more than the copying."""
WINDOW_BYTES = 256 * 1024
"""In a pipe at a time, as much as is held of an answer that is read."""
TURN_BYTES = 8 * WINDOW_BYTES
"""Moved at a stretch, in half a millisecond: a picture, mostly. Then others have their turn."""
MAX_IDLE_PIPES = 32

_NOW = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK if POSSIBLE else 0


class Sink(Protocol):
    """Where a body goes: a socket, and who has to know how much of the body was written to it."""

    @property
    def fd(self) -> int:
        """Of the socket, which does not block."""

    def took(self, count: int) -> None:
        """So many bytes more were written to it."""


class SinkGone(Exception):
    """Nobody reads at the sink's other end any more."""


async def ready(fd: int, *, to_write: bool, timeout_s: float | None = None) -> None:
    """Wait until a socket can be read, or written to; for `timeout_s` at most. Nobody else may wait for this descriptor."""
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not waiter.done():
            waiter.set_result(None)

    (loop.add_writer if to_write else loop.add_reader)(fd, wake)
    timer = None if timeout_s is None else loop.call_later(timeout_s, wake)
    try:
        await waiter
    finally:
        (loop.remove_writer if to_write else loop.remove_reader)(fd)
        if timer is not None:
            timer.cancel()


class Pipes:
    """Empty ones are kept for the next body: to make one of this size costs more than to send a window through it."""

    def __init__(self) -> None:
        self._idle: list[tuple[int, int]] = []
        self._most = MAX_IDLE_PIPES

    def take(self) -> tuple[int, int]:
        """The end to read from, and the one to write to. Whoever gets it gives it back. Raises: OSError."""
        if self._idle:
            return self._idle.pop()
        ends = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        with suppress(OSError):  # One who has many pipes may make no larger ones; a small one carries the same, in more turns.
            fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, WINDOW_BYTES)
        return ends

    def give_back(self, ends: tuple[int, int], *, empty: bool) -> None:
        """empty: whether nothing is in it; what is would become a part of the next body."""
        if empty and len(self._idle) < self._most:
            self._idle.append(ends)
        else:
            _close(ends)

    def close(self) -> None:
        """Let go of those that are kept, and keep none from now on."""
        self._most = 0
        while self._idle:
            _close(self._idle.pop())


def _close(ends: tuple[int, int]) -> None:
    for fd in ends:
        os.close(fd)


class Channel:
    """From a socket into a sink. What has left the one and not reached the other is in the pipe between them."""

    def __init__(self, source: int, sink: Sink, pipes: Pipes) -> None:
        """source: a descriptor of the socket; this one has its own, so that it can be waited for apart from others."""
        self._sink = sink
        self._pipes = pipes
        self.source = os.dup(source)
        try:
            self._ends = pipes.take()
        except OSError:
            os.close(self.source)
            raise
        self._empty = True
        self._drain = partial(os.splice, self._ends[0], sink.fd, flags=_NOW)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipes.give_back(self._ends, empty=self._empty)
        os.close(self.source)

    async def move(self, most: int) -> int | None:
        """Have the sink take what is in the source, up to a window, as fast as it can.

        Returns: how many bytes; None: there are none just now; 0: there will be none. Raises: SinkGone.
        """
        try:
            count = os.splice(self.source, self._ends[1], min(most, WINDOW_BYTES), flags=_NOW)
        except BlockingIOError:
            return None
        except OSError:
            return 0
        self._empty = False
        await _into(self._sink, count, self._drain)
        self._empty = True
        return count


async def write(content: bytes, sink: Sink) -> None:
    """The same with bytes that were read. Raises: SinkGone."""
    view = memoryview(content)
    await _into(sink, len(content), lambda left: os.write(sink.fd, view[-left:]))


async def _into(sink: Sink, count: int, move: Callable[[int], int]) -> None:
    while count:
        try:
            moved = move(count)
        except BlockingIOError:
            await ready(sink.fd, to_write=True)
        except OSError as error:
            raise SinkGone from error
        else:
            count -= moved
            sink.took(moved)
