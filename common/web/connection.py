"""A client's connection: uvicorn's own, with bounds on what a client may do to us, and with less memory.

Before anybody has asked for its key, a client could fill the memory by a head without an end, or take every connection there
may be by being slow; so heads and bodies have a time to come in, and those who say nothing are sent away. One who asks and
does not read its answer is the kernel's to send away (`serving.py`).

Large bodies of known length go past the parser and are handed on in the pieces that were read: of a picture's way through a
router, copying would be the larger part.

What waits for long is many requests at once, so what each holds is small: asyncio's events and queues of requests that came
before their turn take two kilobytes a connection, though hardly any connection ever needs one.
"""

import asyncio
import fcntl
import os
import socket
import termios
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from common.errors import AquatintError, HeadTooLarge, InvalidRequest, RequestTimeout
from common.web.connections import Connections
from common.web.errors import answer_error
from common.web.lending import EXTENSION, ClientSocket, client_socket

MAX_HEAD_BYTES = 64 * 1024
"""Of a request; and of what stands between two pieces of a body in chunks, or behind it. A head that is whole may be as much
larger as the loop reads at a time."""
HEAD_WITHIN_S = 10.0
"""From the first byte of a request to the last of its head. Clients send it in one piece."""
BODY_WITHIN_S = 30.0
"""From there to the last byte of its body, and"""
LEAST_BYTES_PER_S = 8 * 1024
"""a second more for so many bytes that came: the slowest line that a picture is sent over."""
HEARD_OUT_S, HEARD_OUT_BYTES = 2.0, 8 * 1024 * 1024
"""How much may still come from a client that was refused."""
LARGE_BYTES = 256 * 1024
"""The rest of a body that is at least as long goes past the parser, which would copy it."""
LOOK_EVERY_S = 0.1
"""How often at most a body is looked at that has no time left, while it waits for us."""


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
    """uvicorn's own, with an event only while a client reads too slowly, and with a clock for what a client takes to send."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.read_paused = self.write_paused = False
        self._writable: asyncio.Event | None = None
        self._paused_at_s = self._paused_s = 0.0

    def pause_reading(self) -> None:
        """The app is behind with reading."""
        if not self.read_paused:
            self._paused_at_s = time.monotonic()
        super().pause_reading()

    def resume_reading(self) -> None:
        """It has caught up."""
        if self.read_paused:
            self._paused_s += time.monotonic() - self._paused_at_s
        super().resume_reading()

    def clients_s(self) -> float:
        """Seconds on a clock that stands still while the client waits for us."""
        return (self._paused_at_s if self.read_paused else time.monotonic()) - self._paused_s

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


def head_without_upgrade(parser: httptools.HttpRequestParser, target: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The head of a request whose client would rather speak HTTP/2, as Java's own asks each time, and `curl --http2`. Whoever
    does not speak it may pass over the wish (RFC 9110, 7.8); but the parser passes over the body."""
    lines = [b"%b %b HTTP/%b" % (parser.get_method(), target, parser.get_http_version().encode())]
    for name, value in headers:
        if name == b"connection":
            value = b",".join([each for each in value.split(b",") if each.strip().lower() != b"upgrade"])
        lines.append(b"%b: %b" % (name, value))
    return b"\r\n".join([*lines, b"", b""])


class _Few(list[Any]):
    """What a connection's queue needs of a deque; hardly any connection has anything in it."""

    def appendleft(self, each: Any) -> None:
        self.insert(0, each)


class ClientConnection(HttpToolsProtocol):
    """uvicorn's own, which offers its socket, has bounds, and ends without a request being lost by it."""

    connections: Connections  # type: ignore[assignment]
    comes = False
    """Whether the head of a request has begun to come."""
    _bare_bytes = 0
    """That came since the last head was whole, or the last piece of a body came. The parser keeps them."""
    _late_at_s: float | None = None
    """When the head that is just coming is late, on the loop's clock."""
    _body_bytes: int | None = None
    """That came of the body that is just coming."""
    _body_timer: asyncio.TimerHandle | None = None
    _past_parser_bytes = 0
    """That are still to come of a body that goes past the parser."""
    _ends = False
    _is_refused = False
    _heard_out_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        super().connection_made(transport)
        self.flow: Flow = Flow(transport)
        self.pipeline = _Few()  # type: ignore[assignment]
        # As long as one that was answered may stay that says nothing more.
        self._expect_within(self.timeout_keep_alive, self.timeout_keep_alive_handler)
        self.connections.make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has left, or was sent away."""
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn itself forgets it where the connection was reset.
        self._body_is_over()
        self._tell_left()

    def _tell_left(self) -> None:
        if self.cycle is not None:
            self.cycle.message_event.set()
            offered = client_socket(self.cycle.scope)
            if offered is not None:
                offered.has_left()

    def data_received(self, data: bytes) -> None:
        """Bytes are here."""
        if self._is_refused:
            self._heard_out_bytes += len(data)
            if self._heard_out_bytes > HEARD_OUT_BYTES:
                self.transport.abort()
            return
        if self._past_parser_bytes and not (data := self._past_parser(data)):
            return
        self._bare_bytes += len(data)
        self._unset_keepalive_if_required()
        self._parse(data)
        if self._is_refused or self.transport.is_closing():
            return
        if self._bare_bytes > MAX_HEAD_BYTES:
            if self._answers():
                self.transport.close()
            else:
                self._refuse(HeadTooLarge("The head of the request is too large."))
        elif self.comes:
            now_s = self.loop.time()
            self._late_at_s = self._late_at_s or now_s + HEAD_WITHIN_S
            self._expect_within(self._late_at_s - now_s, self._head_is_late)
        elif self._body_bytes is not None and self._body_timer is None:
            self._look_at_body(self.flow.clients_s())
            self._past_parser_bytes = self._large_rest_bytes(self._body_bytes)

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as wish:
            if self.parser.get_method() == b"CONNECT":
                self._is_no_http()
            else:
                head = head_without_upgrade(self.parser, self.url, self.headers)
                self._begin_parsing()
                self._parse(head + data[wish.args[0] :])
        except httptools.HttpParserError:
            self._is_no_http()

    def _begin_parsing(self) -> None:
        """With a parser that has seen nothing yet, set up as uvicorn does it."""
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def _is_no_http(self) -> None:
        self.logger.warning("Invalid HTTP request received.")
        if self._body_bytes is not None:
            self._refuse_body(InvalidRequest("The body of the request is no HTTP.", code="invalid_http"))
        elif self._answers():  # It stands behind the request that is being answered.
            self.end_with_answer()
            self.flow.pause_reading()
        else:
            self._refuse(InvalidRequest("This is no HTTP request.", code="invalid_http"))

    def _large_rest_bytes(self, here_bytes: int) -> int:
        """What is to come of a body of which so much is here; 0: it is short, or nobody knows."""
        rest_bytes = int(dict(self.headers).get(b"content-length", b"0")) - here_bytes
        return rest_bytes if rest_bytes >= LARGE_BYTES else 0

    def _past_parser(self, data: bytes) -> bytes:
        """Take what belongs to the body; gives what follows it."""
        rest, data = data[self._past_parser_bytes :], data[: self._past_parser_bytes]
        self._past_parser_bytes -= len(data)
        self.on_body(data)
        if self._past_parser_bytes == 0:
            self.on_message_complete()
            self._begin_parsing()  # The parser that there was still waits for the body.
        return rest

    def _expect_within(self, seconds: float, otherwise: Callable[[], None]) -> None:
        """The next byte; uvicorn calls this timer off with each."""
        self.timeout_keep_alive_task = self.loop.call_later(seconds, otherwise)

    def _head_is_late(self) -> None:
        if self._answers():
            self.end_with_answer()
        else:
            self._refuse(RequestTimeout("The head of the request was too long in coming."))

    def _look_at_body(self, began_s: float) -> None:
        assert self._body_bytes is not None
        left_s = BODY_WITHIN_S + self._body_bytes / LEAST_BYTES_PER_S - (self.flow.clients_s() - began_s)
        if left_s > 0:
            self._body_timer = self.loop.call_later(max(left_s, LOOK_EVERY_S), self._look_at_body, began_s)
        else:
            self._refuse_body(RequestTimeout("The body of the request was too long in coming."))

    def _refuse_body(self, error: AquatintError) -> None:
        """Of a request that the app has, and may have answered."""
        if self._answers() and not self.cycle.response_started:
            self.cycle.disconnected = True  # Nothing that the app says is its answer any more.
            self._tell_left()
            self._refuse(error)
        else:
            self.transport.close()

    def _body_is_over(self) -> None:
        self._body_bytes, self._past_parser_bytes = None, 0
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None

    def _refuse(self, error: AquatintError) -> None:
        """Answer in the app's place, and hang up: after a while, in which the client is heard out, for one that still sends
        when the connection closes sees a reset instead of its answer."""
        answer = answer_error(error)
        headers = [*self.server_state.default_headers, *answer.raw_headers, (b"connection", b"close")]
        lines = b"".join([b"%b: %b\r\n" % header for header in headers])
        self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[error.status], lines, bytes(answer.body)))
        self._is_refused = True
        self._body_is_over()
        self.transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(HEARD_OUT_S, self.transport.close)

    def _answers(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def on_message_begin(self) -> None:
        """The first byte of a request is here."""
        super().on_message_begin()
        self.comes = True

    def on_headers_complete(self) -> None:
        """A request begins."""
        if self.parser.should_upgrade():
            return  # It will be read again.
        super().on_headers_complete()
        self.connections.asks(self)
        self.comes, self._bare_bytes, self._late_at_s, self._body_bytes = False, 0, None, 0
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
        if self._body_bytes is not None:
            self._body_bytes += len(body)
        if not self.cycle.body:
            self.cycle.body = b""  # type: ignore[assignment]  # Adding to this takes what comes as it is, without a copy.
        super().on_body(body)

    def on_response_complete(self) -> None:
        """A request was answered."""
        super().on_response_complete()
        if not self._answers():
            self.connections.was_answered(self)

    def abort(self) -> None:
        """Close it at once, whatever is on its way."""
        self.transport.abort()

    def on_message_complete(self) -> None:
        """Its last byte is here."""
        if self.parser.should_upgrade():
            return
        super().on_message_complete()
        self._body_is_over()
        offered = client_socket(self.scope)
        if offered is not None:
            offered.is_whole()

    def end_with_answer(self) -> None:
        """The server is about to stop: the next answer, or the one in the making, is the last, and says so."""
        self._ends = True
        if self.cycle is not None and self._answers():
            self.cycle.keep_alive = False

    def close_if_idle(self) -> None:
        """Hang up on a client that asks for nothing; not on one whose request is on its way to us."""
        if not (self.transport.is_closing() or self._answers() or self.comes or self._has_unread()):
            # The transport closes in the loop's next turn, and what comes until then is reset; so it learns of it now.
            with socket.socket(fileno=os.dup(self.transport.get_extra_info("socket").fileno())) as ours, suppress(OSError):
                ours.shutdown(socket.SHUT_WR)
            self.transport.close()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing has come on it for as long as it may stay open."""
        self.close_if_idle()

    def _has_unread(self) -> bool:
        waiting = bytearray(4)
        fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.FIONREAD, waiting)
        return any(waiting)
