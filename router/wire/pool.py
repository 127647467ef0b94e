"""Connections to nodes: made when needed, kept while they are good."""

import asyncio
import ssl
import time
from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

from router.wire.answer import Answer, Refused, answer_on
from router.wire.connection import Connection

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
        self._idle: dict[tuple[str, str], list[Connection]] = {}
        self._open: set[Connection] = set()
        self._tls: ssl.SSLContext | None = None

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, *, lost: asyncio.Event | None = None) -> Answer:
        """Send a request; returns when the head of the answer is here. Cancelling closes the connection.

        lost: gives up soon after it is set.
        Raises: Refused: nothing was sent. Broken: it was, and no whole head came back.
        """
        parts = urlsplit(url)
        connection = self._kept(parts) or await self._connected(parts)
        connection.send(_head("POST", parts, headers, len(body)), body)
        return await answer_on(connection, lambda: self._give_back(parts, connection), lost=lost)

    async def get(self, url: str, headers: Mapping[str, str]) -> Answer:
        """As `post`, without a body. Raises: Refused, Broken."""
        parts = urlsplit(url)
        connection = self._kept(parts) or await self._connected(parts)
        connection.send(_head("GET", parts, headers, 0), b"")
        return await answer_on(connection, lambda: self._give_back(parts, connection), lost=None)

    def close(self) -> None:
        """Close all connections, those in use too."""
        for connection in list(self._open):
            connection.abort()
        self._idle.clear()

    def _kept(self, parts: SplitResult) -> Connection | None:
        """The connection used last of those that lie idle."""
        idle = self._idle.get((parts.scheme, parts.netloc), [])
        while idle:
            connection = idle.pop()
            if time.monotonic() - connection.idle_since_s < IDLE_S and connection.quiet():
                return connection
            connection.abort()
        return None

    async def _connected(self, parts: SplitResult) -> Connection:
        if parts.scheme == "https" and self._tls is None:
            self._tls = ssl.create_default_context()
        secure = self._tls if parts.scheme == "https" else None
        try:
            if parts.hostname is None:
                raise ValueError("an address without a host")
            port = parts.port or (80 if secure is None else 443)
            async with asyncio.timeout(self._connect_timeout_s):
                loop = asyncio.get_running_loop()
                _, made = await loop.create_connection(lambda: Connection(self._open.discard), parts.hostname, port, ssl=secure)
        except (OSError, ValueError, TimeoutError) as error:
            # Never the address: reasons reach clients.
            raise Refused(type(error).__name__) from error
        self._open.add(made)
        return made

    def _give_back(self, parts: SplitResult, connection: Connection) -> None:
        idle = self._idle.setdefault((parts.scheme, parts.netloc), [])
        if connection.finish() and len(idle) < MAX_IDLE:
            connection.idle_since_s = time.monotonic()
            idle.append(connection)
        else:
            connection.abort()


def _head(method: str, parts: SplitResult, headers: Mapping[str, str], length: int) -> bytes:
    path = parts.path or "/"
    lines = [f"{method} {path} HTTP/1.1", f"host: {parts.netloc.rpartition('@')[2]}", f"content-length: {length}"]
    lines += [f"{name}: {value.translate(_CONTROLS)}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "backslashreplace")
