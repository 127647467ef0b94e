"""One answer of a node, as it comes."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from router.wire.connection import Connection

LOOK_EVERY_S = 0.5
"""How often someone who waits for bytes asks whether it is worth it."""


class Refused(Exception):
    """Nothing was sent: no connection could be made."""


class Broken(Exception):
    """The answer did not come, or not whole."""


class Answer:
    """Status and headers (in small letters); the body is read once, and `close` called in any case."""

    def __init__(self, connection: Connection, give_back: Callable[[], None]) -> None:
        self._connection = connection
        self._give_back = give_back
        self._closed = False
        self.status = connection.status
        self.headers = connection.headers

    async def chunks(self, *, silence_s: float | None = None, lost: asyncio.Event | None = None) -> AsyncIterator[bytes]:
        """The body as it comes. silence_s: how long the node may let us wait, over the whole body; None: for ever.
        lost: gives up when it is set, as the body of a node that is gone without a word would never end.

        Raises: Broken.
        """
        connection, waited_s = self._connection, 0.0
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
                waited_s += time.monotonic() - began_s
                if silence_s is not None and waited_s > silence_s:
                    raise Broken("the body came too slowly")
                if lost is not None and lost.is_set():
                    raise Broken("the node no longer answers")

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
        chunks = [chunk]
        while (chunk := connection.take()) is not None:
            chunks.append(chunk)
        return b"".join(chunks)

    async def read(self, *, max_bytes: int, silence_s: float) -> bytes | None:
        """A small body, whole; None if it is larger. Raises: Broken."""
        body = b""
        async for chunk in self.chunks(silence_s=silence_s):
            body += chunk
            if len(body) > max_bytes:
                return None
        return body

    def close(self) -> None:
        """Give the connection back if all was read, else close it, which tells the node that nobody waits any more."""
        if not self._closed:
            self._closed = True
            self._give_back()


async def answer_on(connection: Connection, give_back: Callable[[], None], *, lost: asyncio.Event | None) -> Answer:
    """The answer to what was sent on `connection`, as soon as its head is here. Raises: Broken."""
    try:
        while not connection.status:
            if connection.broken is not None:
                raise Broken(connection.broken)
            if lost is not None and lost.is_set():
                raise Broken("the node no longer answers")
            await connection.arrival(LOOK_EVERY_S)
    except BaseException:
        connection.abort()
        raise
    return Answer(connection, give_back)
