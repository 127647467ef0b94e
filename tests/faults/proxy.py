"""A TCP proxy before a node that can be made to lie: it cuts, holds, and answers in the node's place."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

RUN = b"POST /v1/images/"
CHUNK_BYTES = 64 * 1024


@dataclass(slots=True)
class Lie:
    """What is answered to runs instead of the node's answer."""

    answer: bytes
    """Raw; the connection ends after it. Empty: a reset."""
    passes_on: bool = False
    """Whether the node is given the run all the same, and its answer dropped."""
    pace_s: float = 0.0
    """Pause after each of the answer's bytes; 0: all at once."""


class Proxy:
    """One node's. Connections are passed on byte by byte until a fault says otherwise."""

    def __init__(self, node_port: int) -> None:
        self._node_port = node_port
        self.lies: deque[Lie] = deque()
        """What the next runs are answered with, each once. Proxies may share them."""
        self.looks: Callable[[], bytes | None] | None = None
        """What looks at the node's state are answered with, raw; None from it: the node answers. It may raise `Silence`."""
        self._connections: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None
        self.url = ""

    async def open(self) -> None:
        """Listen, on a free port of this machine."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=CHUNK_BYTES)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def close(self) -> None:
        """Listen no more, and reset what is open."""
        assert self._server is not None
        self._server.close()
        self.cut()

    def cut(self) -> None:
        """Reset every open connection."""
        for writer in list(self._connections):
            writer.transport.abort()

    def hold(self) -> None:
        """Let nothing through, in either direction, and close nothing: a network that drops packets."""
        self._flowing.clear()

    def heal(self) -> None:
        """Pass everything on again."""
        self.lies, self.looks = deque(), None
        self._flowing.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream: asyncio.StreamWriter | None = None
        back: asyncio.Task[None] | None = None
        self._connections.add(writer)
        try:
            while data := await reader.read(CHUNK_BYTES):
                await self._flowing.wait()
                if data.startswith(RUN) and self.lies:
                    await self._lied(self.lies.popleft(), data, reader, writer)
                    return
                if data.startswith(b"GET") and self.looks is not None and (told := self.looks()) is not None:
                    writer.write(told)
                    await writer.drain()
                    return
                if upstream is None:
                    answers, upstream = await asyncio.open_connection("127.0.0.1", self._node_port)
                    back = asyncio.create_task(self._passed_back(answers, writer))
                upstream.write(data)
                await upstream.drain()
        except Silence:
            await reader.read()  # Until the router closes.
        except OSError:
            writer.transport.abort()
        finally:
            self._connections.discard(writer)
            if back is not None:
                back.cancel()
            for each in filter(None, (upstream, writer)):
                each.close()

    async def _passed_back(self, answers: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await answers.read(CHUNK_BYTES):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
            writer.close()
        except OSError:
            # As the node's end came: a node that was killed resets.
            writer.transport.abort()

    async def _lied(self, lie: Lie, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await _whole(first, reader)
        if lie.passes_on:
            await _ask(self._node_port, request)
        if not lie.answer:
            writer.transport.abort()
            return
        for piece in [lie.answer] if not lie.pace_s else [lie.answer[i : i + 1] for i in range(len(lie.answer))]:
            writer.write(piece)
            await writer.drain()
            if lie.pace_s:
                await asyncio.sleep(lie.pace_s)


class Silence(Exception):
    """A look that is to have no answer at all."""


async def _whole(first: bytes, reader: asyncio.StreamReader) -> bytes:
    """A request, to the last byte of its body."""
    request = first
    while b"\r\n\r\n" not in request:
        request += await reader.read(CHUNK_BYTES)
    head, _, body = request.partition(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
    return request + (await reader.readexactly(length - len(body)) if length > len(body) else b"")


async def _ask(port: int, request: bytes) -> None:
    """Have the node do what is asked, and read its answer to the end of its connection or its first pause."""
    answers, node = await asyncio.open_connection("127.0.0.1", port)
    node.write(request)
    await node.drain()
    head = await answers.readuntil(b"\r\n\r\n")
    length = next((int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0)
    await answers.readexactly(length)
    node.close()
