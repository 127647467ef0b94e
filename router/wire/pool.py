"""Connections to nodes: made when needed, kept while they are good."""

import asyncio
import math
import ssl
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import NamedTuple
from urllib.parse import SplitResult, urlsplit

from router.wire.answer import LOOK_EVERY_S, Answer, Broken, Refused
from router.wire.connection import READ_BYTES, Connection, Origin
from router.wire.pouring import Pipes

MAX_IDLE = 64
"""Idle connections kept for one node."""
IDLE_S = 30.0
"""A connection that lay idle for longer is not used again: nodes close theirs after 65 s."""

_CONTROLS = dict.fromkeys([*range(0x20), 0x7F])
"""What must not be in a header's value, or one value could become two headers."""


class Pool:
    """All connections of one client."""

    def __init__(self, *, connect_timeout_s: float) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._buffer = bytearray(READ_BYTES)
        self._pipes = Pipes()
        self._idle: dict[Origin, list[Connection]] = {}
        self._open: set[Connection] = set()
        self._tls: ssl.SSLContext | None = None

    async def post(
        self,
        url: str,
        headers: Mapping[str, str],
        body: bytes | Sequence[bytes],
        *,
        lost: asyncio.Event | None = None,
        deadline_s: float = math.inf,
        method: str = "POST",
    ) -> Answer:
        """Send a request; returns when the head of the answer is here. Cancelling closes the connection.

        body: as a whole or in pieces. lost: gives up soon after it is set. deadline_s: on the monotonic clock.
        Raises: Refused: nothing was sent. Broken: it was, and no whole head came back. TimeoutError: nor did it in time.
        """
        place = _place_of(url)
        connection = self._kept(place.origin) or await self._connected(place, deadline_s)
        pieces = (body,) if isinstance(body, bytes) else body
        connection.send((_head(method, place, headers, sum(map(len, pieces))), *pieces))
        try:
            while not connection.status:
                if connection.broken is not None:
                    raise Broken(connection.broken)
                if lost is not None and lost.is_set():
                    raise Broken("the node no longer answers")
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    raise TimeoutError
                await connection.arrival(min(LOOK_EVERY_S, left_s))
        except BaseException:
            connection.abort()
            raise
        return Answer(connection, self._give_back)

    async def get(self, url: str, headers: Mapping[str, str]) -> Answer:
        """As `post`, without a body. Raises: Refused, Broken."""
        return await self.post(url, headers, b"", method="GET")

    def close(self) -> None:
        """Close all connections, those in use too."""
        for connection in list(self._open):
            connection.abort()
        self._idle.clear()
        self._pipes.close()

    def _kept(self, origin: Origin) -> Connection | None:
        """The connection used last of those that lie idle."""
        idle = self._idle.get(origin, [])
        while idle:
            connection = idle.pop()
            if time.monotonic() - connection.idle_since_s < IDLE_S and connection.quiet():
                return connection
            connection.abort()
        return None

    async def _connected(self, place: "_Place", deadline_s: float) -> Connection:
        parts = place.parts
        if parts.scheme == "https" and self._tls is None:
            self._tls = ssl.create_default_context()
        secure = self._tls if parts.scheme == "https" else None
        try:
            if parts.hostname is None:
                raise ValueError("an address without a host")
            port = parts.port or (80 if secure is None else 443)
            make = partial(Connection, place.origin, self._buffer, self._pipes, self._open.discard)
            async with asyncio.timeout(min(self._connect_timeout_s, max(0.0, deadline_s - time.monotonic()))):
                loop = asyncio.get_running_loop()
                _, made = await loop.create_connection(make, parts.hostname, port, ssl=secure)
        except (OSError, ValueError, TimeoutError) as error:
            if time.monotonic() >= deadline_s:
                raise TimeoutError from error
            # Never the address: reasons reach clients.
            raise Refused(type(error).__name__) from error
        self._open.add(made)
        return made

    def _give_back(self, connection: Connection) -> None:
        idle = self._idle.setdefault(connection.origin, [])
        if connection.finish() and len(idle) < MAX_IDLE:
            connection.idle_since_s = time.monotonic()
            idle.append(connection)
        else:
            connection.abort()


class _Place(NamedTuple):
    """What a URL says, as every request to it needs it."""

    parts: SplitResult
    origin: Origin
    opening: str
    """Of a head: what stands between the method and the length of the body."""


@lru_cache(maxsize=1024)
def _place_of(url: str) -> _Place:
    parts = urlsplit(url)
    opening = f" {parts.path or '/'} HTTP/1.1\r\nhost: {parts.netloc.rpartition('@')[2]}\r\ncontent-length: "
    return _Place(parts, (parts.scheme, parts.netloc), opening)


def _head(method: str, place: _Place, headers: Mapping[str, str], length: int) -> bytes:
    if not "".join(headers.values()).isprintable():
        headers = {name: value.translate(_CONTROLS) for name, value in headers.items()}
    lines = "".join([f"\r\n{name}: {value}" for name, value in headers.items()])
    return f"{method}{place.opening}{length}{lines}\r\n\r\n".encode("latin-1", "backslashreplace")
