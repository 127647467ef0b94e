"""The socket of a client, lent to whoever can fill it with the body of an answer without that body's coming by here.

ASGI hands over bodies as bytes. Where they are large, and their sender has them in another socket, that is most of what an
answer costs; so requests offer the socket itself in their scope, beside ASGI's `send`.

Nor does ASGI tell when a request has come as a whole, or its client has left, to one who is not reading it just then; the
offer does.

What waits for long is many requests at once, so what each holds is small: asyncio's events and queues of requests that came
before their turn take two kilobytes a connection, though hardly any connection ever needs one.
"""

import asyncio
import fcntl
import os
import termios
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

EXTENSION = "aquatint.client_socket"
MAX_HEAD_BYTES = 64 * 1024
"""Of a request; and of what stands between two pieces of a body in chunks, or behind it. A head that is whole may be as much
larger as the loop reads at a time."""
HEAD_WITHIN_S = 10.0
"""From the first byte of a request to the last of its head. Clients send it in one piece."""


class Flag:
    """What a request needs of `asyncio.Event`."""

    __slots__ = ("_set", "_waiting")

    def __init__(self) -> None:
        self._set = False
        self._waiting: list[asyncio.Future[None]] = []

    def set(self) -> None:
        """Wake those who wait; from now on nobody does."""
        self._set = True
        for each in self._waiting:
            if not each.done():
                each.set_result(None)

    def clear(self) -> None:
        """Have those who come wait again."""
        self._set = False

    async def wait(self) -> None:
        """Until it is set."""
        if not self._set:
            woken = asyncio.get_running_loop().create_future()
            self._waiting.append(woken)
            try:
                await woken
            finally:
                self._waiting.remove(woken)


class Flow(FlowControl):
    """uvicorn's own, with an event only while a client reads too slowly."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.read_paused = self.write_paused = False
        self._writable: asyncio.Event | None = None

    async def drain(self) -> None:
        """Returns when more may be written."""
        if self._writable is not None:
            await self._writable.wait()

    def pause_writing(self) -> None:
        """The client reads too slowly."""
        if not self.write_paused:
            self.write_paused, self._writable = True, asyncio.Event()

    def resume_writing(self) -> None:
        """It has read what was kept for it."""
        if self._writable is not None:
            self._writable.set()
        self.write_paused, self._writable = False, None


class _Few(list[Any]):
    """What a connection's queue needs of a deque; hardly any connection has anything in it."""

    def appendleft(self, each: Any) -> None:
        self.insert(0, each)


class LendingProtocol(HttpToolsProtocol):
    """uvicorn's own, with the offer, with bounds on heads, on a silent client's stay, and with an end that no request is lost
    by."""

    comes = False
    """Whether the head of a request has begun to come."""
    _bare_bytes = 0
    """That came since the last head was whole, or the last piece of a body came. The parser keeps them."""
    _late_at_s: float | None = None
    """When the head that is just coming is late, on the loop's clock."""
    _ends = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        super().connection_made(transport)
        self.flow = Flow(transport)
        self.pipeline = _Few()  # type: ignore[assignment]
        # As long as one that was answered may stay that says nothing more.
        self._expect_within(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has left, or was sent away."""
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn itself forgets it where the connection was reset.
        if self.cycle is not None:
            socket = client_socket(self.cycle.scope)
            if socket is not None:
                socket.has_left()

    def data_received(self, data: bytes) -> None:
        """Bytes are here. A client whose head has no end, or is long in coming, is sent away: before anybody has asked for
        its key, it could fill the memory, or take every connection there may be."""
        self._bare_bytes += len(data)
        super().data_received(data)
        if self._bare_bytes > MAX_HEAD_BYTES:
            if self._answers():
                self.transport.close()
            else:
                self.send_400_response("The head of the request is too large.")
        elif self.comes and not self.transport.is_closing():
            now_s = self.loop.time()
            self._late_at_s = self._late_at_s or now_s + HEAD_WITHIN_S
            self._expect_within(self._late_at_s - now_s, self._head_is_late)

    def _expect_within(self, seconds: float, otherwise: Callable[[], None]) -> None:
        """The next byte; uvicorn calls this timer off with each."""
        self.timeout_keep_alive_task = self.loop.call_later(seconds, otherwise)

    def _head_is_late(self) -> None:
        if self._answers():
            self.end_with_answer()
        else:
            self.send_400_response("The head of the request was too long in coming.")

    def _answers(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def on_message_begin(self) -> None:
        """The first byte of a request is here."""
        super().on_message_begin()
        self.comes = True

    def on_headers_complete(self) -> None:
        """A request begins."""
        super().on_headers_complete()
        self.comes, self._bare_bytes, self._late_at_s = False, 0, None
        if self._ends and self.cycle is not None:
            self.cycle.keep_alive = False
        if self.cycle is not None and self.cycle.scope is self.scope:
            self.cycle.message_event = Flag()  # type: ignore[assignment]
            if self.scheme == "http":
                scope: Any = self.scope
                scope["extensions"] = {EXTENSION: ClientSocket(self.cycle)}

    def on_body(self, body: bytes) -> None:
        """Some of its body is here."""
        self._bare_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Its last byte is here."""
        super().on_message_complete()
        socket = client_socket(self.scope)
        if socket is not None:
            socket.is_whole()

    def end_with_answer(self) -> None:
        """The server is about to stop: the next answer, or the one in the making, is the last, and says so."""
        self._ends = True
        if self.cycle is not None and self._answers():
            self.cycle.keep_alive = False

    def close_if_idle(self) -> None:
        """Hang up on a client that asks for nothing; not on one whose request is on its way to us."""
        if not (self.transport.is_closing() or self._answers() or self.comes or self._has_unread()):
            self.transport.close()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing has come on it for as long as it may stay open."""
        self.close_if_idle()

    def _has_unread(self) -> bool:
        socket = self.transport.get_extra_info("socket")
        waiting = bytearray(4)
        fcntl.ioctl(socket.fileno(), termios.FIONREAD, waiting)
        return any(waiting)


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
