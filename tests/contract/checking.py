"""What the programs for Python share: a picture, its size, a refusal that must come. Needs nothing but Python."""

import base64
import struct
import zlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

MODEL = "aquatint-demo"
WRONG_KEY = "sk-wrong-0123456789abcdef"
PNG = b"\x89PNG\r\n\x1a\n"
E = TypeVar("E", bound=BaseException)


def png(width: int = 32, height: int = 32) -> bytes:
    """A black picture, without any library."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return PNG + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes((3 * width + 1) * height))) + chunk(b"IEND", b"")


def size_of(content: bytes | str | None) -> tuple[int, int]:
    """Width and height in a PNG's header; content: its bytes, or base64 of them."""
    raw = base64.b64decode(content or "") if not isinstance(content, bytes) else content
    assert raw.startswith(PNG)
    width, height = struct.unpack(">II", raw[16:24])
    return width, height


def refusal(call: Callable[[], Any], kind: type[E]) -> E:
    """The exception of a call that must fail."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was expected")


async def refusal_of(call: Awaitable[Any], kind: type[E]) -> E:
    """The same of a call that is awaited."""
    try:
        await call
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was expected")
