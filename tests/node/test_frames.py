"""Frames between node and worker: what goes in comes out, and nothing beyond the bounds gets through."""

import asyncio
import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.worker.frames import MAX_BLOB_BYTES, MAX_BLOBS, MAX_HEADER_BYTES, Frame, FrameError, pack, read_frame, read_frame_from

HEADERS = st.dictionaries(st.text(max_size=9), st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=30))


def read(content: bytes) -> Frame:
    source = io.BytesIO(content)

    def exactly(size: int) -> bytes:
        part = source.read(size)
        if len(part) < size:
            raise EOFError
        return part

    return read_frame(exactly)


async def read_async(content: bytes) -> Frame:
    reader = asyncio.StreamReader()
    reader.feed_data(content)
    reader.feed_eof()
    return await read_frame_from(reader)


@given(HEADERS, st.lists(st.binary(max_size=200), max_size=5))
def test_what_is_packed_is_read_by_both_sides(header: dict[str, object], blobs: list[bytes]):
    frame = Frame(header, tuple(blobs))

    assert read(pack(header, blobs)) == frame
    assert asyncio.run(read_async(pack(header, blobs))) == frame


async def test_frames_follow_one_another():
    content = pack({"a": 1}, [b"x"]) + pack({"b": 2})
    reader = asyncio.StreamReader()
    reader.feed_data(content)

    assert [await read_frame_from(reader), await read_frame_from(reader)] == [Frame({"a": 1}, (b"x",)), Frame({"b": 2})]


@pytest.mark.parametrize(
    "content",
    [
        struct.pack("!II", MAX_HEADER_BYTES + 1, 0),
        struct.pack("!II", 2, MAX_BLOBS + 1),
        struct.pack("!IIQ", 2, 1, MAX_BLOB_BYTES + 1) + b"{}",
        struct.pack("!II", 2, 0) + b"[]",
        struct.pack("!II", 3, 0) + b"{a}",
    ],
)
async def test_a_frame_beyond_the_bounds_is_refused_before_it_is_read(content: bytes):
    with pytest.raises(FrameError):
        read(content)
    with pytest.raises(FrameError):
        await read_async(content)


def test_too_much_is_refused_before_it_is_sent():
    with pytest.raises(FrameError):
        pack({}, [b""] * (MAX_BLOBS + 1))
    with pytest.raises(FrameError):
        pack({"prompt": "x" * MAX_HEADER_BYTES})


async def test_a_frame_cut_off_is_the_end_of_the_stream():
    whole = pack({"a": 1}, [b"xyz"])

    for end in range(len(whole)):
        with pytest.raises(EOFError):
            read(whole[:end])
        with pytest.raises(asyncio.IncompleteReadError):
            await read_async(whole[:end])
