"""One answer of a node, as it comes."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from router.wire import pouring
from router.wire.connection import Connection

LOOK_EVERY_S = 0.5
"""How often someone who waits for bytes asks whether it is worth it."""


class Refused(Exception):
    """Nothing was sent: no connection could be made."""


class Broken(Exception):
    """The answer did not come, or not whole."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a node may let us wait for a body, all waits together: `silence_s`, None for ever, and where `least_per_s` is
    given, a second more for every so many bytes that came. lost: no longer than until it is set, as the body of a node that
    is gone without a word would never end."""

    silence_s: float | None = None
    least_per_s: float | None = None
    lost: asyncio.Event | None = None

    def check(self, waited_s: float, came_bytes: int) -> None:
        """Raises: Broken: that was too long."""
        if self.silence_s is not None:
            earned_s = came_bytes / self.least_per_s if self.least_per_s else 0.0
            if waited_s > self.silence_s + earned_s:
                raise Broken("the body came too slowly")
        if self.lost is not None and self.lost.is_set():
            raise Broken("the node no longer answers")


class Answer:
    """Status and headers (in small letters); the body is read once, and `close` called in any case."""

    def __init__(self, connection: Connection, give_back: Callable[[Connection], None]) -> None:
        self._connection = connection
        self._give_back = give_back
        self._closed = False
        self._waited_s = 0.0
        self.status = connection.status
        self.headers = connection.headers

    @property
    def taken_bytes(self) -> int:
        """Of the body, however it was taken."""
        return self._connection.taken_bytes

    @property
    def can_pour(self) -> bool:
        """Whether the body is long enough, and its connection plain, for `pour` to be worth it."""
        return self._connection.can_pour

    def whole(self) -> bytes | None:
        """The body, if all of it is here and none was taken: then the answer is closed as well. None: it still comes."""
        connection = self._connection
        if not connection.done or connection.taken_bytes:
            return None
        content = connection.take_all()
        self.close()
        return content

    async def chunks(self, patience: Patience) -> AsyncIterator[bytes]:
        """The body as it comes. Raises: Broken."""
        connection = self._connection
        while True:
            chunk = connection.take()
            if chunk is not None:
                yield chunk
            elif connection.done:
                return
            elif connection.broken is not None:
                raise Broken(connection.broken)
            else:
                began_s = time.monotonic()
                await connection.arrival(LOOK_EVERY_S)
                self._note_wait(began_s, patience)

    async def pour(self, sink: pouring.Sink, patience: Patience) -> bool:
        """Have the kernel move the body into a sink, as far as it comes; then `chunks` gives nothing more, or says why not.

        Returns: whether that was all of it. Raises: SinkGone.
        """

        async def wait(source: int) -> None:
            began_s = time.monotonic()
            await pouring.ready(source, to_write=False, timeout_s=LOOK_EVERY_S)
            self._note_wait(began_s, patience)

        try:
            await self._connection.pour(sink, wait)
        except Broken as error:
            self._connection.give_up(str(error))
        return self._connection.done

    def _note_wait(self, began_s: float, patience: Patience) -> None:
        self._waited_s += time.monotonic() - began_s
        patience.check(self._waited_s, self._connection.taken_bytes)

    async def arrived(self, *, silence_s: float) -> bytes | None:
        """All of the body that is here and was not taken, once there is any; None at its end. For bodies without an end.

        Raises: Broken: it was cut off, or nothing came for so long. The time this process itself stood still does not count.
        """
        connection, looks = self._connection, 0
        while (chunk := connection.take()) is None:
            if connection.done:
                return None
            if connection.broken is not None:
                raise Broken(connection.broken)
            if looks * LOOK_EVERY_S >= silence_s:
                raise Broken("nothing came for too long")
            looks += 1
            await connection.arrival(LOOK_EVERY_S)
        return chunk + connection.take_all()

    async def read(self, *, max_bytes: int, silence_s: float) -> bytes | None:
        """A small body, whole; None if it is larger. Raises: Broken."""
        body = b""
        async for chunk in self.chunks(Patience(silence_s)):
            body += chunk
            if len(body) > max_bytes:
                return None
        return body

    def close(self) -> None:
        """Give the connection back if all was read, else close it, which tells the node that nobody waits any more."""
        if not self._closed:
            self._closed = True
            self._give_back(self._connection)
