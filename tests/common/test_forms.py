"""A form means the same however it is written and however it is cut; what is no form is refused, and nothing worse."""

import io
import itertools
from collections.abc import AsyncIterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.datastructures import Headers

from common.errors import AquatintError, InvalidRequest, PayloadTooLarge
from common.images_api import ImageRequest, Task, UploadLimits, parse_form, read_form_request, searching
from common.images_api.forms import Room
from common.images_api.request import Upload

LIMITS = UploadLimits(max_bytes=20_000, max_pixels=1_000_000, max_side_px=4096)
MANY = settings(max_examples=80, deadline=None, derandomize=True)


def _picture(file_format: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (24, 16)).save(out, file_format)
    return out.getvalue()


ALMOST = _picture("PNG") + b"\r\n--b0undar\r\r\n--b0undarz\r\n-\r" * 20
"""A picture, and behind it what begins like the mark between parts."""
FILES = [_picture("PNG"), _picture("JPEG"), _picture("WEBP"), ALMOST, b"", b"%PDF-1.7", b"--", b"\r\n--b\r\n", b"\x00" * 20_001]
TEXTS = ["1", "2", "0", "abc", "", "true", "a cat\r\n--b", "猫", "auto", "64x64", '{"a": 1}']
NAMES = ["prompt", "n", "size", "stream", "seed", "strength", "extra_params", "tags[]", "loras[][name]", "svg[a][b]", "image"]
FILE_NAMES = ["image", "image[]", "image[0]", "image[1]", "mask", "avatar"]
# RFC 2046, 5.1.1: what a boundary may be made of.
BOUNDARIES = st.text("0123456789abcXYZ'()+_,-./:=?", min_size=1, max_size=70)


@dataclass(frozen=True)
class Part:
    """One part, and the way its head is written."""

    name: str
    content: bytes
    file: bool
    style: int = 0

    def head(self) -> bytes:
        """Names and parameters of headers are the same in any case and any order (RFC 9110, 5.1; RFC 2183)."""
        parameters = [f'name="{self.name}"', *(['filename="a.png"'] if self.file else [])]
        if self.style & 1:
            parameters.reverse()
        disposition = "content-DISPOSITION" if self.style & 2 else "Content-Disposition"
        lines = [f"{disposition}: form-data; {'; '.join(parameters)}", "X-Other: 1"]
        lines += ["CONTENT-TYPE: application/octet-stream"] if self.file else []
        if self.style & 4:
            lines.reverse()
        return "\r\n".join(lines).encode()


def texts() -> st.SearchStrategy[Part]:
    """Text parts, right and wrong."""
    content = st.one_of(st.sampled_from(TEXTS), st.text(max_size=50)).map(lambda text: text.encode("utf-8", "replace"))
    return st.builds(Part, st.sampled_from(NAMES), content, st.just(False), st.integers(0, 7))


def files() -> st.SearchStrategy[Part]:
    """File parts, right and wrong."""
    content = st.one_of(st.sampled_from(FILES), st.binary(max_size=200))
    return st.builds(Part, st.sampled_from(FILE_NAMES), content, st.just(True), st.integers(0, 7))


GOOD = [Part("prompt", b"a cat", file=False), Part("image", FILES[0], file=True), Part("mask", FILES[0], file=True)]
PARTS = st.one_of(st.lists(st.one_of(texts(), files()), max_size=8), texts().map(lambda part: [*GOOD, part]), st.just(GOOD))
CUTS = st.lists(st.integers(0, 100_000), max_size=40)


def written(parts: list[Part], boundary: str = "b0undary", before: bytes = b"") -> bytes:
    """The body of a form. before: the preamble, which readers pass over (RFC 2046, 5.1.1)."""
    mark = f"--{boundary}".encode()
    return before + b"".join(mark + b"\r\n" + p.head() + b"\r\n\r\n" + p.content + b"\r\n" for p in parts) + mark + b"--\r\n"


async def verdict(
    body: bytes, content_type: str, cuts: list[int] | None = None, *, room: Room | None = None, limits: UploadLimits = LIMITS
) -> ImageRequest | tuple[Any, ...]:
    """The request, or what the refusal tells. room: for it to arrive in, as much as it wants if absent. Raises whatever is no
    refusal."""
    edges = sorted({0, len(body), *(cut % (len(body) + 1) for cut in cuts or [])})

    async def stream() -> AsyncIterator[bytes]:
        for start, end in itertools.pairwise(edges):
            yield body[start:end]

    headers = Headers({"content-type": content_type, "content-length": str(len(body))})
    try:
        texts, attached = await parse_form(headers, stream(), limits, room or Room(len(body)))
        return read_form_request(Task.EDIT, texts, attached, limits)
    except (InvalidRequest, PayloadTooLarge) as error:
        return (error.status, error.type, error.param, error.code, error.message)


def kind(boundary: str = "b0undary") -> str:
    """The content type of a form."""
    return f'multipart/form-data; boundary="{boundary}"'


@MANY
@given(PARTS, CUTS)
async def test_how_a_form_is_cut_changes_neither_the_verdict_nor_the_request(parts: list[Part], cuts: list[int]):
    body = written(parts)

    assert await verdict(body, kind(), cuts) == await verdict(body, kind())


@settings(MANY, max_examples=300)
@given(st.sampled_from([ALMOST, ALMOST[:-1], FILES[0]]), CUTS)
@example(ALMOST, list(range(10_000)))
async def test_a_file_is_the_same_however_it_is_cut(content: bytes, cuts: list[int]):
    got = await verdict(written([GOOD[0], Part("image", content, file=True), Part("n", b"2", file=False)]), kind(), cuts)

    assert isinstance(got, ImageRequest)
    assert (got.images[0].content, got.n) == (content, 2)


async def test_a_file_that_comes_in_large_pieces_is_kept_in_them_and_one_in_small_ones_is_put_together():
    content = FILES[0] + b"x" * 200_000
    body = written([GOOD[0], Part("image", content, file=True)])

    async def image(step: int) -> Upload:
        got = await verdict(body, kind(), list(range(0, len(body), step)), limits=UploadLimits())
        assert isinstance(got, ImageRequest)
        return got.images[0]

    large, small = await image(50_000), await image(1000)

    assert (len(large.pieces), len(small.pieces)) == (5, 1)
    assert large.content == small.content == content
    assert large.sha256() == small.sha256() == sha256(content).digest()
    assert large.size_bytes == len(content)


async def test_what_a_picture_is_may_stand_behind_its_first_piece():
    profile = io.BytesIO()
    Image.new("RGB", (24, 16)).save(profile, "JPEG", icc_profile=b"x" * 60_000)
    body = written([GOOD[0], Part("image", profile.getvalue(), file=True)])

    got = await verdict(body, kind(), [20_000, 40_000], limits=UploadLimits())

    assert isinstance(got, ImageRequest)
    assert (len(got.images[0].pieces), got.images[0].width_px, got.images[0].height_px) == (3, 24, 16)


@pytest.mark.parametrize("fast", [True, False], ids=["by the system", "by Python"])
@settings(MANY)
@given(st.text("\r\n-b", max_size=200), st.text("\r\n-b", min_size=1, max_size=5))
def test_searching_finds_what_is_there_and_nothing_else(fast: bool, content: str, wanted: str):
    search = None if not fast else searching._memmem
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(searching, "_memmem", search)
        assert searching.contains(b"\0" + content.encode(), wanted.encode()) == (wanted in content)


@MANY
@given(PARTS, CUTS)
async def test_a_form_is_the_same_where_memory_has_no_room_for_its_files(parts: list[Part], cuts: list[int]):
    body = written(parts)

    assert await verdict(body, kind(), cuts, room=Room(len(body) - 1)) == await verdict(body, kind())


async def test_forms_have_their_room_while_they_arrive_and_no_longer():
    room, seen = Room(1000), list[int]()
    headers = {"content-type": kind()}

    async def stream(*, broken: bool = False) -> AsyncIterator[bytes]:
        seen.append(room.free_bytes)
        yield b"broken" if broken else written([Part("prompt", b"x", file=False)])

    await parse_form(Headers(headers | {"content-length": "600"}), stream(), LIMITS, room)
    await parse_form(Headers(headers | {"content-length": "1001"}), stream(), LIMITS, room)
    await parse_form(Headers(headers), stream(), LIMITS, room)
    with pytest.raises(InvalidRequest):
        await parse_form(Headers(headers | {"content-length": "1000"}), stream(broken=True), LIMITS, room)

    assert seen == [400, 1000, 1000, 0]
    assert room.free_bytes == 1000


@settings(MANY, max_examples=10)
@given(PARTS)
async def test_a_form_that_comes_byte_by_byte_is_the_same_form(parts: list[Part]):
    body = written([Part(p.name, p.content[:300], p.file, p.style) for p in parts])

    assert await verdict(body, kind(), list(range(len(body)))) == await verdict(body, kind())


@MANY
@given(PARTS, BOUNDARIES, CUTS)
async def test_the_boundary_is_the_clients_choice(parts: list[Part], boundary: str, cuts: list[int]):
    contents = b"".join(part.head() + part.content for part in parts)
    if f"--{boundary}".encode() in b"\r\n" + contents:
        boundary = "b0undary"

    assert await verdict(written(parts, boundary), kind(boundary), cuts) == await verdict(written(parts), kind())


@MANY
@given(PARTS)
async def test_how_the_heads_of_parts_are_written_changes_nothing(parts: list[Part]):
    plain = [Part(part.name, part.content, part.file) for part in parts]

    assert await verdict(written(parts), kind()) == await verdict(written(plain), kind())


@MANY
@given(PARTS, st.binary(max_size=300), CUTS)
async def test_a_preamble_is_passed_over_or_refused_but_never_read(parts: list[Part], before: bytes, cuts: list[int]):
    """Readers may ignore it; nobody sends one. What must not be: another request than the one that was meant."""
    body = written(parts, before=before.replace(b"--b0undary", b"") + b"\r\n")

    got = await verdict(body, kind(), cuts)

    meant = await verdict(written(parts), kind())
    assert got == meant or (isinstance(got, tuple) and got[3] == "invalid_form")


@settings(MANY, max_examples=300)
@given(st.binary(max_size=400), st.lists(st.binary(max_size=40), max_size=6), CUTS)
async def test_no_bytes_bring_more_than_a_refusal(junk: bytes, pieces: list[bytes], cuts: list[int]):
    body = b"\r\n--b0undary".join([junk, *pieces])

    for content_type in (kind(), "multipart/form-data", "multipart/form-data; boundary=", 'multipart/form-data; boundary="'):
        got = await verdict(body, content_type, cuts)
        assert isinstance(got, tuple)
        assert got[0] in (400, 413)


@MANY
@given(PARTS, st.data())
async def test_a_form_with_a_byte_gone_wrong_brings_no_more_than_a_verdict(parts: list[Part], data: st.DataObject):
    body = bytearray(written(parts)[:5000])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))

    got = await verdict(bytes(body), kind())

    assert isinstance(got, ImageRequest) or got[0] in (400, 413)


@MANY
@given(st.text(max_size=80), st.binary(max_size=100))
async def test_no_content_type_brings_more_than_a_refusal(parameters: str, body: bytes):
    content_type = f"multipart/form-data; {parameters}".encode("latin-1", "replace").decode("latin-1")

    try:
        got = await verdict(body, content_type)
    except AquatintError as error:
        raise AssertionError("only two classes are foreseen") from error
    assert isinstance(got, tuple)
