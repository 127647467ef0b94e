"""Load: requests one after the other on each of several connections, every answer read to its end and its size checked."""

import asyncio
import io
import os
import time
from dataclasses import dataclass, field
from typing import Any

import httptools
import orjson

from router.bench.stub_node import model

ANSWER_WITHIN_S = 60.0
_BOUNDARY = "5f1d7c84a9e3b26078c4d1fa93be5027"
"""As long as those that OpenAI's SDKs draw (httpx: 16 bytes in hexadecimal)."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One kind of load. Its name: size of the answer x connections. upload_bytes: of the picture in an edit; 0: a
    generation."""

    name: str
    model: str
    connections: int
    count: int
    least_bytes: int
    """What the body of an answer has at least."""
    upload_bytes: int = 0


CELLS = (
    Cell("20 KB x 1", model(20), 1, 300, 20_000),
    Cell("1.4 MB x 1", model(1400), 1, 60, 1_400_000),
    Cell("20 KB x 32", model(20), 32, 1200, 20_000),
    Cell("1.4 MB x 32", model(1400), 32, 320, 1_400_000),
    Cell("6 MB x 64", model(6000), 64, 128, 6_000_000),
    Cell("upload of 8 MB x 16", model(20), 16, 48, 20_000, 8_000_000),
)


def request(cell_model: str, key: str, *, upload: bytes = b"", stream: bool = False) -> bytes:
    """One whole HTTP request for an answer of `cell_model`."""
    fields: dict[str, Any] = {"model": cell_model, "prompt": "a photograph of a cat"}
    if upload:
        path, body = "/v1/images/edits", _form(fields, upload)
        kind = f"multipart/form-data; boundary={_BOUNDARY}"
    else:
        path, kind = "/v1/images/generations", "application/json"
        body = orjson.dumps(fields | ({"stream": True, "partial_images": 3} if stream else {}))
    head = f"POST {path} HTTP/1.1\r\nhost: bench\r\nauthorization: Bearer {key}\r\n"
    return (head + f"content-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n").encode() + body


def _form(fields: dict[str, Any], upload: bytes) -> bytes:
    parts = [
        f'--{_BOUNDARY}\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    head = 'content-disposition: form-data; name="image"; filename="a.png"\r\ncontent-type: image/png\r\n\r\n'
    parts += [f"--{_BOUNDARY}\r\n{head}".encode(), upload, f"\r\n--{_BOUNDARY}--\r\n".encode()]
    return b"".join(parts)


def picture(size_bytes: int) -> bytes:
    """A PNG of about this many bytes: noise, which does not compress."""
    from PIL import Image

    side = int((size_bytes / 3) ** 0.5)
    out = io.BytesIO()
    Image.frombytes("RGB", (side, side), os.urandom(side * side * 3)).save(out, "PNG", compress_level=0)
    return out.getvalue()


@dataclass(slots=True)
class Load:
    """What came of it. seconds: of each good answer, from the request's writing to its last byte."""

    seconds: list[float] = field(default_factory=list)
    wall_s: float = 0.0
    bad: int = 0


class _Reader(asyncio.Protocol):
    """One connection; one answer at a time."""

    def __init__(self) -> None:
        self._ended: asyncio.Future[bool] | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self._end(False)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()

    def on_body(self, body: bytes) -> None:
        self._size += len(body)

    def on_message_complete(self) -> None:
        self._end(self._parser.get_status_code() == 200 and self._size >= self._least_bytes)

    def _end(self, good: bool) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(good)

    async def ask(self, whole: bytes, least_bytes: int) -> bool:
        """Send, and read the answer to its end; whether it was good."""
        self._ended = asyncio.get_running_loop().create_future()
        self._parser, self._size, self._least_bytes = httptools.HttpResponseParser(self), 0, least_bytes
        self._transport.write(whole)
        async with asyncio.timeout(ANSWER_WITHIN_S):
            return await self._ended

    def close(self) -> None:
        self._transport.abort()


async def drive(port: int, whole: bytes, cell: Cell, *, count: int) -> Load:
    """`count` requests over the cell's connections, each sending its next as soon as it was answered."""
    load, left = Load(), iter(range(count))
    began_s = time.perf_counter()
    await asyncio.gather(*(_connection(port, whole, cell, left, load) for _ in range(min(cell.connections, count))))
    load.wall_s = time.perf_counter() - began_s
    return load


async def _connection(port: int, whole: bytes, cell: Cell, left: Any, load: Load) -> None:
    reader: _Reader | None = None
    for _ in left:
        if reader is None:
            _, reader = await asyncio.get_running_loop().create_connection(_Reader, "127.0.0.1", port)
        began_s = time.perf_counter()
        try:
            good = await reader.ask(whole, cell.least_bytes)
        except TimeoutError:
            good = False
        if good:
            load.seconds.append(time.perf_counter() - began_s)
        else:
            load.bad += 1
            reader.close()
            reader = None
    if reader is not None:
        reader.close()
