"""Frames between node and worker: a JSON object and any number of raw blobs, all lengths told first and bounded.

    u32 header bytes | u32 number of blobs | u64 bytes of each blob ... | header (JSON) | blobs ...

Big-endian. The bounds keep a broken peer from making the other side allocate without end.
"""

import struct
from asyncio import StreamReader
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

MAX_HEADER_BYTES = 4 * 1024 * 1024
"""A prompt of 32,000 characters four bytes each, twice over, is a sixteenth of this."""
MAX_BLOBS = 64
MAX_BLOB_BYTES = 1024 * 1024 * 1024
"""A PNG of 16384 x 16384 pixels at its worst is below this."""
_PREFIX = struct.Struct("!II")


class FrameError(Exception):
    """The peer sent something that is not a frame, or one beyond the bounds."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One message with its blobs."""

    header: dict[str, Any]
    blobs: tuple[bytes, ...] = ()


def pack(header: dict[str, Any], blobs: Sequence[bytes] = ()) -> bytes:
    """The bytes of one frame. Raises: FrameError: beyond the bounds."""
    text = orjson.dumps(header)
    _check(len(text), [len(blob) for blob in blobs])
    lengths = struct.pack(f"!{len(blobs)}Q", *(len(blob) for blob in blobs))
    return b"".join((_PREFIX.pack(len(text), len(blobs)), lengths, text, *blobs))


def read_frame(read: Callable[[int], bytes]) -> Frame:
    """One frame from a blocking source; `read(n)` gives exactly n bytes. Raises: FrameError; whatever `read` raises."""
    header_bytes, count = _sizes(read(_PREFIX.size))
    lengths = _lengths(header_bytes, count, read(8 * count))
    header = _header(read(header_bytes))
    return Frame(header, tuple(read(length) for length in lengths))


async def read_frame_from(reader: StreamReader) -> Frame:
    """One frame from an asyncio stream. Raises: FrameError; asyncio.IncompleteReadError at its end."""
    header_bytes, count = _sizes(await reader.readexactly(_PREFIX.size))
    lengths = _lengths(header_bytes, count, await reader.readexactly(8 * count))
    header = _header(await reader.readexactly(header_bytes))
    return Frame(header, tuple([await reader.readexactly(length) for length in lengths]))


def _sizes(prefix: bytes) -> tuple[int, int]:
    header_bytes, count = _PREFIX.unpack(prefix)
    if header_bytes > MAX_HEADER_BYTES or count > MAX_BLOBS:
        raise FrameError(f"a frame of {header_bytes} header bytes and {count} blobs")
    return header_bytes, count


def _lengths(header_bytes: int, count: int, raw: bytes) -> list[int]:
    lengths = list(struct.unpack(f"!{count}Q", raw))
    _check(header_bytes, lengths)
    return lengths


def _check(header_bytes: int, lengths: Sequence[int]) -> None:
    if header_bytes > MAX_HEADER_BYTES or len(lengths) > MAX_BLOBS or max(lengths, default=0) > MAX_BLOB_BYTES:
        raise FrameError(f"a frame of {header_bytes} header bytes and blobs of {list(lengths)} bytes")


def _header(text: bytes) -> dict[str, Any]:
    try:
        header = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise FrameError(f"a header that is not JSON: {error}") from None
    if not isinstance(header, dict):
        raise FrameError("a header that is not a JSON object")
    return header
