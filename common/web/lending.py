"""The socket of a client, lent to whoever can fill it with the body of an answer without that body's coming by here.

ASGI hands over bodies as bytes. Where they are large, and their sender has them in another socket, that is most of what an
answer costs; so requests offer the socket itself in their scope, beside ASGI's `send`.

Nor does ASGI tell when a request has come as a whole to one who is not reading it just then; the offer does.
"""

import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

EXTENSION = "aquatint.client_socket"


class LendingProtocol(HttpToolsProtocol):
    """uvicorn's own, with the offer."""

    def on_headers_complete(self) -> None:
        """A request begins."""
        super().on_headers_complete()
        if self.cycle is not None and self.cycle.scope is self.scope and self.scheme == "http":
            scope: Any = self.scope
            scope["extensions"] = {EXTENSION: ClientSocket(self.cycle)}

    def on_message_complete(self) -> None:
        """Its last byte is here."""
        super().on_message_complete()
        socket = client_socket(self.scope)
        if socket is not None:
            socket.is_whole()


class ClientSocket:
    """Of one request."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._tell: Callable[[], None] | None = None

    def when_whole(self, tell: Callable[[], None]) -> None:
        """Have it told once the last byte of the request is here: now, if it is."""
        if self._cycle.more_body:
            self._tell = tell
        else:
            tell()

    def is_whole(self) -> None:
        """The last byte of the request is here."""
        tell, self._tell = self._tell, None
        if tell is not None:
            tell()

    @asynccontextmanager
    async def lent(self) -> AsyncIterator["Lent | None"]:
        """For the body of an answer whose head, with its length, was sent. None: the client has left, or the answer has no
        such length."""
        cycle, transport = self._cycle, self._cycle.transport
        # What goes through the transport must all have left before anything goes past it.
        transport.set_write_buffer_limits(0)
        while cycle.flow.write_paused and not cycle.disconnected:
            await cycle.flow.drain()
        if cycle.disconnected or cycle.chunked_encoding is not False:
            yield None
            return
        # A descriptor of its own: the loop waits for the transport's by itself.
        fd = os.dup(transport.get_extra_info("socket").fileno())
        try:
            yield Lent(fd, cycle)
        finally:
            os.close(fd)
            if not transport.is_closing():
                transport.set_write_buffer_limits()


class Lent:
    """A descriptor of the socket, and the count of what was written to it. See `router.wire.pouring.Sink`."""

    def __init__(self, fd: int, cycle: RequestResponseCycle) -> None:
        self.fd = fd
        self._cycle = cycle

    def took(self, count: int) -> None:
        """So many bytes of the body were written."""
        self._cycle.expected_content_length -= count

    def hang_up(self) -> None:
        """Nobody is at the other end any more."""
        self._cycle.transport.abort()


def client_socket(scope: Mapping[str, Any]) -> ClientSocket | None:
    """That of a request; None where its server offers none."""
    offered: ClientSocket | None = scope.get("extensions", {}).get(EXTENSION)
    return offered
