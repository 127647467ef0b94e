"""One connection to a node, and the answer that is just coming over it."""

import asyncio
import select
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import httptools

from router.wire import pouring

HIGH_WATER_BYTES = 256 * 1024
"""Bytes of an answer held here before the node has to wait; half of it, and it goes on."""
READ_BYTES = 64 * 1024
"""Read at a time: of a body that goes past us (`pouring.py`), what comes with its head is copied twice."""
MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 100
END_OF_HEAD = b"\r\n\r\n"

Origin = tuple[str, str]
"""Scheme, and host with port."""


class Connection(asyncio.BufferedProtocol):
    """What arrived and was not taken yet, and whether it can be trusted. `Answer` is its only reader."""

    def __init__(self, origin: Origin, buffer: bytearray, pipes: pouring.Pipes, lost: Callable[["Connection"], None]) -> None:
        """buffer: of all connections of one loop, which reads into it for one after another; so are the pipes."""
        self.origin = origin
        self._pipes = pipes
        self._buffer = buffer
        self._view = memoryview(buffer)
        self._lost = lost
        self.broken: str | None = None
        """Why nothing more will come; None while all is well."""
        self.idle_since_s = 0.0
        self._transport: Any = None
        self._unread = select.poll()
        self._waiter: asyncio.Future[None] | None = None
        self._idle = True
        self._paused = False
        self._reset()

    def _reset(self) -> None:
        self.status = 0
        """0 until the whole head is here."""
        self.headers: dict[str, str] = {}
        self.done = False
        """The last byte of the answer is here."""
        self.taken_bytes = 0
        """Of the body, by whoever reads it."""
        self._held_back = False
        """Whether the rest of the body waits in the socket for its reader to say how he wants it."""
        self._chunks: deque[bytes] = deque()
        self._held_bytes = 0
        self._head_bytes = 0
        self._header_bytes = 0
        self._bare_bytes = 0
        """Of a body in chunks, since the last of its bytes came. The parser keeps what follows the last chunk until it is
        whole."""
        self._left: int | None = None
        self._lengths: list[str] = []
        self._chunked = False
        self._keep = True

    # What an answer asks for.

    def send(self, pieces: Sequence[bytes]) -> None:
        """Begin a request: its head and its body; the connection is this request's until `finish` or `abort`."""
        self._reset()
        self._idle = False
        self._parser = httptools.HttpResponseParser(self)
        if sum(map(len, pieces)) <= HIGH_WATER_BYTES:
            self._transport.write(b"".join(pieces))
        else:  # Joining would copy them.
            self._transport.writelines(pieces)

    async def arrival(self, timeout_s: float | None) -> None:
        """Wait until something has come, or the end has, at most `timeout_s`."""
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = None if timeout_s is None else loop.call_later(timeout_s, self._wake)
        try:
            await self._waiter
        finally:
            if timer is not None:
                timer.cancel()

    def take(self) -> bytes | None:
        """The next bytes of the body, None when there are none just now."""
        chunk = self._next()
        if self._paused:
            self._go_on()
        return chunk

    def _next(self) -> bytes | None:
        if not self._chunks:
            return None
        chunk = self._chunks.popleft()
        self._held_bytes -= len(chunk)
        self.taken_bytes += len(chunk)
        return chunk

    def take_all(self) -> bytes:
        """All bytes of the body that are here, which may be none."""
        content = b"".join(self._chunks)
        self._chunks.clear()
        self._held_bytes = 0
        self.taken_bytes += len(content)
        if self._paused:
            self._go_on()
        return content

    @property
    def can_pour(self) -> bool:
        """Whether what is still to come of the body may go past us."""
        return self._held_back and self._paused and self.broken is None

    async def pour(self, sink: pouring.Sink, wait: Callable[[int], Awaitable[None]]) -> None:
        """Have the whole body go into a sink, what is here of it first. wait: for more in a descriptor of our socket.

        Where the node's connection ends too early, `broken` says so. Raises: SinkGone, and what `wait` raises.
        """
        while (chunk := self._next()) is not None:
            await pouring.write(chunk, sink)
        turn_bytes = 0
        with pouring.Channel(self._transport.get_extra_info("socket").fileno(), sink, self._pipes) as channel:
            while self._left and self.broken is None:
                count = await channel.move(self._left)
                if count is None:
                    await wait(channel.source)
                elif count == 0:
                    self._fail("the connection was closed")
                else:
                    self._left -= count
                    self.taken_bytes += count
                    turn_bytes += count
                    if turn_bytes >= pouring.TURN_BYTES:
                        turn_bytes = 0
                        await asyncio.sleep(0)
        if self.broken is None:
            self.done = True
            self._resume()

    def quiet(self) -> bool:
        """Whether an idle connection can still be used: its end, or bytes nobody asked for, may lie in the socket unread."""
        return self.broken is None and not self._unread.poll(0)

    def finish(self) -> bool:
        """The answer was read to its end. Whether the connection can carry another."""
        good = (
            self.done
            and self.broken is None
            and self._keep
            and not self._paused
            # An answer that came before the request was all sent: the node will read the rest as another request.
            and self._transport.get_write_buffer_size() == 0
        )
        if good:
            self._idle = True
        else:
            self.abort()
        return good

    def give_up(self, why: str) -> None:
        """Nothing more of this answer is wanted."""
        self._fail(why)

    def abort(self) -> None:
        """Close at once, which is how a node learns that nobody waits any more."""
        self.broken = self.broken or "closed here"
        self._chunks.clear()
        if self._transport is not None:
            self._transport.abort()

    # What the event loop calls.

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._unread.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
        self._plain = pouring.POSSIBLE and transport.get_extra_info("sslcontext") is None

    def connection_lost(self, error: Exception | None) -> None:
        self._fail("the connection was reset" if error is not None else "the connection was closed")
        self._lost(self)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, count: int) -> None:
        if self._idle or self.done:
            # Nobody asked for this: whatever it is, it must not become the next request's answer.
            self._fail("bytes that nobody asked for")
            self._transport.abort()
            return
        try:
            if self.status:
                self._of_body(0, count)
            else:
                self._of_head(count)
        except (httptools.HttpParserError, _Doubtful) as error:
            if self.done:  # It is whole; what follows it is not trusted with another.
                self._keep = False
            else:
                self._fail(str(error) if isinstance(error, _Doubtful) else "the answer is not HTTP")
                self._transport.abort()
        self._wake()

    def _of_head(self, count: int) -> None:
        """What follows a head of known length in the buffer, the parser need not see. Cut in its blank line, it sees it all."""
        end = self._buffer.find(END_OF_HEAD, 0, count)
        size = count if end < 0 else end + len(END_OF_HEAD)
        self._parser.feed_data(self._view[:size])
        if size < count:
            self._of_body(size, count)
        self._head_bytes += count
        if not self.status and self._head_bytes > MAX_HEAD_BYTES:
            raise _Doubtful("the head of the answer has no end")
        if self._left is not None and self._left >= pouring.LEAST_BYTES and self._plain and not self._paused:
            self._held_back = True
            self._pause()

    def _of_body(self, at: int, end: int) -> None:
        """at, end: where it is in the buffer."""
        if self.status and self._left is not None:
            self._of_known_length(bytes(self._view[at:end]))
        else:  # Chunks; or another head, after one of 1xx.
            self._bare_bytes += end - at
            self._parser.feed_data(self._view[at:end])
            if self.status and self._bare_bytes > MAX_HEAD_BYTES:
                raise _Doubtful("what follows the body has no end")

    def _of_known_length(self, data: bytes) -> None:
        assert self._left is not None
        if len(data) > self._left:
            data, self._keep = data[: self._left], False
        self._left -= len(data)
        self.done = self._left == 0
        self._push(data)

    def _push(self, data: bytes) -> None:
        self._chunks.append(data)
        self._held_bytes += len(data)
        if self._held_bytes > HIGH_WATER_BYTES and not self._paused and not self.done:
            self._pause()

    def _pause(self) -> None:
        self._paused = True
        self._transport.pause_reading()

    def _go_on(self) -> None:
        if self._held_bytes < HIGH_WATER_BYTES // 2 and self.broken is None:
            self._resume()

    def _resume(self) -> None:
        self._paused = False
        self._transport.resume_reading()

    def _fail(self, why: str) -> None:
        self.broken = self.broken or why
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # What the parser calls.

    def on_message_begin(self) -> None:
        if self.done:
            raise _Doubtful("a second answer to one request")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._header_bytes += len(name) + len(value)
        if len(self.headers) > MAX_HEADERS or self._header_bytes > MAX_HEAD_BYTES:
            raise _Doubtful("the head of the answer is too large")
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        if key == "content-length":
            self._lengths.append(text.strip())
        elif key == "transfer-encoding":
            if self._chunked or text.strip().lower() != "chunked":
                raise _Doubtful("a transfer coding that is not understood")
            self._chunked = True
        elif key == "content-encoding" and text.strip().lower() != "identity":
            raise _Doubtful("a content coding that nobody asked for")
        self.headers[key] = text

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status == 101:
            raise _Doubtful("an upgrade that nobody asked for")
        if 100 <= status < 200:
            return
        if self._chunked and self._lengths:
            raise _Doubtful("two lengths")
        if status in (204, 304):
            self._left = 0
        elif self._lengths:
            length = self._lengths[0]
            # As many digits as a number of bytes can have: int() takes much more than HTTP allows, at any price.
            if len(set(self._lengths)) > 1 or not (length.isascii() and length.isdigit() and len(length) < 16):
                raise _Doubtful("a length that is not one")
            self._left = int(length)
        elif not self._chunked:
            raise _Doubtful("an answer without a length")
        self._keep = self._parser.should_keep_alive()
        self.status = status
        self.done = self._left == 0

    def on_body(self, body: bytes) -> None:
        if self._left is not None:
            self._of_known_length(body)
        else:
            self._bare_bytes = 0
            self._push(body)

    def on_message_complete(self) -> None:
        if not self.status:  # The end of a 1xx: its headers are not the answer's.
            self.headers, self._lengths, self._chunked = {}, [], False
        else:
            self.done = True


class _Doubtful(Exception):
    """The answer's framing cannot be trusted."""
