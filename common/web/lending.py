"""The socket of a client, lent to whoever can fill it with the body of an answer without that body's coming by here.

ASGI hands over bodies as bytes. Where they are large, and their sender has them in another socket, that is most of what an
answer costs; so requests offer the socket itself in their scope, beside ASGI's `send`.

Nor does ASGI tell when a request has come as a whole, or its client has left, to one who is not reading it just then; the
offer does.
"""

import os
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

EXTENSION = "aquatint.client_socket"


class _Together:
    """A transport that keeps the first that is written for the second, so that both leave in one piece."""

    __slots__ = ("_first", "_transport")

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._first: bytes | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._first is None:
            self._first = data
        else:
            self._transport.writelines((self._first, data))
            self._first = b""


class ClientSocket:
    """Of one request, for as long as that is being answered."""

    __slots__ = ("_cycle", "_tell_left", "_tell_whole")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        # The cycle has the scope that has this: with a reference that counts, none of them would go before the garbage does.
        self._cycle = weakref.ref(cycle)
        self._tell_whole: Callable[[], None] | None = None
        self._tell_left: Callable[[], None] | None = None

    def _in_flight(self) -> RequestResponseCycle:
        cycle = self._cycle()
        assert cycle is not None, "its request was answered"
        return cycle

    def when_whole(self, tell: Callable[[], None]) -> None:
        """Have it told once the last byte of the request is here: now, if it is."""
        if self._in_flight().more_body:
            self._tell_whole = tell
        else:
            tell()

    def is_whole(self) -> None:
        """The last byte of the request is here."""
        tell, self._tell_whole = self._tell_whole, None
        if tell is not None:
            tell()

    @property
    def left(self) -> bool:
        """Whether the client has left."""
        return self._in_flight().disconnected

    def when_left(self, tell: Callable[[], None] | None) -> None:
        """Have it told once the client leaves. None: nobody wants to know any more."""
        self._tell_left = tell

    def has_left(self) -> None:
        """The client leaves."""
        if self._tell_left is not None:
            self._tell_left()

    def keep_head(self) -> None:
        """The head of the answer is about to be sent, and its body follows at once: they leave together, as each that leaves
        by itself costs both ends a packet."""
        cycle = self._in_flight()
        cycle.transport = _Together(cycle.transport)  # type: ignore[assignment]

    async def lend(self) -> "Lent | None":
        """For the body of an answer whose head, with its length, was sent. None: the client has left, or the answer has no
        such length. Whoever gets it gives it back."""
        cycle = self._in_flight()
        if cycle.chunked_encoding is not False:
            return None
        # What goes through the transport must all have left before anything goes past it.
        cycle.transport.set_write_buffer_limits(0)
        while cycle.flow.write_paused and not cycle.disconnected:
            await cycle.flow.drain()
        return None if cycle.disconnected else Lent(cycle)


class Lent:
    """A descriptor of the socket, and the count of what was written to it. See `router.wire.pouring.Sink`."""

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        # One of its own: the loop waits for the transport's by itself.
        self.fd = os.dup(cycle.transport.get_extra_info("socket").fileno())

    def took(self, count: int) -> None:
        """So many bytes of the body were written."""
        self._cycle.expected_content_length -= count

    def hang_up(self) -> None:
        """Nobody is at the other end any more."""
        self._cycle.transport.abort()

    def give_back(self) -> None:
        """The rest of what is sent goes through the transport again."""
        os.close(self.fd)
        if not self._cycle.transport.is_closing():
            self._cycle.transport.set_write_buffer_limits()


def client_socket(scope: Mapping[str, Any]) -> ClientSocket | None:
    """That of a request; None where its server offers none."""
    offered: ClientSocket | None = scope.get("extensions", {}).get(EXTENSION)
    return offered
