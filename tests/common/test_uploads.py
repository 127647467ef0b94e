"""Edits and variations as clients really send them: forms and JSON, good pictures and everything else."""

import base64
import io
import itertools
import random
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from starlette.datastructures import Headers

from common.errors import AquatintError
from common.images_api import (
    ImageRequest,
    LoraAsk,
    Task,
    UploadLimits,
    encoded,
    parse_form,
    read_form_request,
    read_json_request,
)
from common.images_api.sniff import sniff

LIMITS = UploadLimits(max_bytes=200_000, max_pixels=1_000_000, max_side_px=4096)


def picture(width: int = 40, height: int = 24, file_format: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    out = io.BytesIO()
    Image.new(mode, (width, height), None).save(out, file_format, **options)
    return out.getvalue()


Part = tuple[str, bytes | str]


def form(parts: list[Part], boundary: str = "b0undary") -> tuple[bytes, Headers]:
    """A body as SDKs send it: raw bytes are called `upload` and have no better type than octet-stream."""
    body = b""
    for name, value in parts:
        extra = '; filename="upload"\r\nContent-Type: application/octet-stream' if isinstance(value, bytes) else ""
        content = value if isinstance(value, bytes) else value.encode()
        body += f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + content + b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), Headers({"content-type": f"multipart/form-data; boundary={boundary}"})


async def read(task: Task, parts: list[Part], cuts: list[int] | None = None) -> ImageRequest:
    body, headers = form(parts)
    edges = sorted({0, len(body), *(cut % len(body) for cut in cuts or [])})

    async def stream() -> AsyncIterator[bytes]:
        for start, end in itertools.pairwise(edges):
            yield body[start:end]

    texts, files = await parse_form(headers, stream(), LIMITS)
    return read_form_request(task, texts, files, LIMITS)


async def refused(task: Task, parts: list[Part]) -> AquatintError:
    with pytest.raises(AquatintError) as caught:
        await read(task, parts)
    return caught.value


PROMPT: Part = ("prompt", "a cat")


@pytest.mark.parametrize(
    "names", [["image"], ["image[]"], ["image[]", "image[]"], ["image[0]", "image[1]"], ["image", "image[]"]]
)
async def test_images_arrive_under_every_name_that_clients_use(names: list[str]):
    parts: list[Part] = [PROMPT, *((name, picture(40 + i)) for i, name in enumerate(names))]

    asked = await read(Task.EDIT, parts)

    assert [image.width_px for image in asked.images] == [40 + i for i in range(len(names))]


async def test_numbers_and_booleans_of_a_form_are_read_as_such():
    parts: list[Part] = [
        PROMPT, ("image", picture()), ("n", "1"), ("seed", "41"), ("strength", "0.5"), ("stream", "true"),
        ("partial_images", "2"), ("size", "auto"), ("guidance_scale", "7"), ("background", ""), ("steps", "9"),
    ]  # fmt: skip

    asked = await read(Task.EDIT, parts)

    assert (asked.n, asked.seed, asked.strength, asked.stream, asked.partial_images) == (1, 41, 0.5, True, 2)
    assert (asked.size, asked.guidance_scale, asked.num_inference_steps) == (None, 7.0, 9)


@pytest.mark.parametrize(
    ("field", "text", "code"),
    [
        ("n", "abc", "invalid_type"),
        ("n", "1.0", "invalid_type"),
        ("n", "１", "invalid_type"),
        ("n", "0", "integer_below_min_value"),
        ("strength", "nan", "invalid_type"),
        ("strength", "1.5", "decimal_above_max_value"),
        ("stream", "yes", "invalid_type"),
        ("size", "huge", "invalid_value"),
        ("prompt", "", "empty_string"),
        ("markup", "x", "unsupported_parameter"),
        ("loras", '[{"name": "x", "scale": "much"}]', "invalid_type"),
        ("loras", '[{"name": "x"', "invalid_type"),
        ("image", "not a file", "invalid_type"),
    ],
)
async def test_a_wrong_text_part_is_answered_400_with_its_name(field: str, text: str, code: str):
    error = await refused(Task.EDIT, [("image", picture()), *([PROMPT] if field != "prompt" else []), (field, text)])

    assert (error.status, error.code) == (400, code)
    assert (error.param or "").startswith(field)


async def test_nested_fields_that_an_sdk_flattened_are_known_by_their_base():
    parts: list[Part] = [PROMPT, ("image", picture()), ("loras[][name]", "a"), ("loras[][scale]", "0.5")]
    parts += [("loras[][name]", "b"), ("loras[][scale]", "-1"), ("loras[][trigger]", "true")]

    assert (await read(Task.EDIT, parts)).loras == (LoraAsk("a", 0.5, trigger=True), LoraAsk("b", -1.0))
    asked = await read(Task.EDIT, [PROMPT, ("image", picture()), ("tags[]", "a"), ("tags[]", "b"), ("svg2[model]", "x")])
    assert set(asked.ignored) == {"tags", "svg2"}


def gif() -> bytes:
    return picture(file_format="GIF", mode="P")


@pytest.mark.parametrize(
    ("content", "code", "said"),
    [
        (gif(), "unsupported_file_mimetype", "image/gif"),
        (picture(file_format="BMP"), "unsupported_file_mimetype", "image/bmp"),
        (picture(file_format="TIFF"), "unsupported_file_mimetype", "image/tiff"),
        (b"%PDF-1.7", "unsupported_file_mimetype", "application/pdf"),
        (b"<svg/>", "unsupported_file_mimetype", "image/svg+xml"),
        (b"plain text", "unsupported_file_mimetype", "octet-stream"),
        (b"", "unsupported_file_mimetype", "octet-stream"),
        (picture()[:20], "invalid_image_file", "image 1"),
        (picture(file_format="JPEG")[:30], "invalid_image_file", "image 1"),
        (picture(file_format="WEBP")[:18], "invalid_image_file", "image 1"),
        (b"\x89PNG\r\n\x1a\n" + b"\x00" * 100, "invalid_image_file", "image 1"),
        (picture(2000, 1000), "image_too_large", "1,000,000 pixels"),
        (picture(5000, 10), "image_too_large", "4096 px"),
        (random.Random(1).randbytes(200_001), "image_too_large", "200,000 bytes"),
    ],
)
async def test_what_is_no_picture_of_ours_is_refused_with_the_reason(content: bytes, code: str, said: str):
    error = await refused(Task.EDIT, [PROMPT, ("image", content)])

    assert (error.status, error.code) == (400, code)
    assert said in error.message


async def test_a_file_of_exactly_the_limit_is_taken():
    padded = picture(file_format="JPEG")
    padded += b"\x00" * (200_000 - len(padded))

    assert (await read(Task.EDIT, [PROMPT, ("image", padded)])).images[0].content == padded


@pytest.mark.parametrize(("file_format", "size"), [("PNG", (7, 300)), ("JPEG", (300, 7)), ("WEBP", (33, 65))])
def test_the_size_in_a_header_is_the_size_of_the_picture(file_format: str, size: tuple[int, int]):
    for options in ({}, {"lossless": True}, {"exif": b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x00"}):
        if file_format == "PNG" and "exif" in options:
            continue
        header = sniff(picture(*size, file_format=file_format, **options))
        assert header is not None
        assert (header.width_px, header.height_px, header.media_type) == (*size, f"image/{file_format.lower()}")


@given(
    st.binary(max_size=200), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF0000WEBP", b"RIFF0000WEBPVP8X"])
)
def test_no_bytes_bring_the_sniffer_down(content: bytes, start: bytes):
    header = sniff(start + content)

    assert header is None or header.format is None or header.width_px > 0


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ([], "missing_required_parameter"),
        ([PROMPT], "missing_required_parameter"),
        ([PROMPT, *[("image[]", picture())] * 17], "array_above_max_length"),
        ([PROMPT, ("image", picture()), ("mask", picture(8, 8))], "invalid_mask_image_format"),
        ([PROMPT, ("image", picture()), ("mask", b"junk")], "unsupported_file_mimetype"),
        ([PROMPT, ("avatar", picture())], "invalid_type"),
    ],
)
async def test_files_that_do_not_go_together_are_refused(parts: list[Part], code: str):
    assert (await refused(Task.EDIT, parts)).code == code


async def test_a_variation_takes_one_image_and_no_prompt():
    asked = await read(Task.VARIATION, [("image", picture()), ("n", "3"), ("size", "256x256")])

    assert (asked.n, len(asked.images), asked.prompt) == (3, 1, "")
    assert (await refused(Task.VARIATION, [("image[]", picture()), ("image[]", picture())])).code == "array_above_max_length"


@pytest.mark.parametrize(
    "kind", ["text/plain", "multipart/form-data", "multipart/form-data; boundary=", "application/x-www-form-urlencoded"]
)
async def test_what_is_no_form_is_a_400(kind: str):
    async def stream() -> AsyncIterator[bytes]:
        yield b"--x\r\nContent-Disposition: form-data\r\n\r\n"

    async def parse_and_read() -> None:
        texts, files = await parse_form(Headers({"content-type": kind}), stream(), LIMITS)
        read_form_request(Task.EDIT, texts, files, LIMITS)

    with pytest.raises(AquatintError) as caught:
        await parse_and_read()
    assert caught.value.status == 400


@settings(max_examples=60, deadline=None)
@given(cuts=st.lists(st.integers(0, 10_000), max_size=30))
async def test_how_a_form_is_cut_into_pieces_changes_nothing(cuts: list[int]):
    parts: list[Part] = [
        PROMPT,
        ("image[]", picture()),
        ("image[]", picture(file_format="JPEG")),
        ("n", "2"),
        ("mask", picture()),
    ]

    assert await read(Task.EDIT, parts, cuts) == await read(Task.EDIT, parts)


def as_json(**fields: Any) -> bytes:
    return orjson.dumps({"prompt": "a cat", **fields})


def data_url(content: bytes) -> dict[str, str]:
    return {"image_url": "data:image/png;base64," + base64.b64encode(content).decode()}


def test_a_json_edit_carries_data_urls():
    asked = read_json_request(Task.EDIT, as_json(images=[data_url(picture())], mask=data_url(picture()), n=2), LIMITS)

    assert (asked.n, len(asked.images), asked.mask is not None) == (2, 1, True)
    assert not asked.ignored


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"image": "x"}, "image", "invalid_value"),
        ({}, "images", "missing_required_parameter"),
        ({"images": []}, "images", "empty_array"),
        ({"images": "x"}, "images", "invalid_type"),
        ({"images": ["x"]}, "images[0]", "invalid_type"),
        ({"images": [{}]}, "images[0].image_url", "missing_required_parameter"),
        ({"images": [{"file_id": "f"}]}, "images[0].file_id", "invalid_value"),
        ({"images": [{"image_url": "https://example.com/a.png"}]}, "images[0].image_url", "invalid_image_url"),
        ({"images": [{"image_url": "data:image/png;base64,@@"}]}, "images[0].image_url", "invalid_value"),
        ({"images": [{"image_url": "data:image/png,abc"}]}, "images[0].image_url", "invalid_value"),
        ({"images": [{"image_url": 5}]}, "images[0].image_url", "invalid_type"),
    ],
)
def test_a_wrong_json_edit_is_answered_400_with_the_place(fields: dict[str, Any], param: str, code: str):
    with pytest.raises(AquatintError) as caught:
        read_json_request(Task.EDIT, as_json(**fields), LIMITS)

    assert (caught.value.status, caught.value.param, caught.value.code) == (400, param, code)


async def test_what_a_node_reads_is_what_the_router_read():
    parts: list[Part] = [
        ("prompt", "猫 \r\n--b"), ("image[]", picture()), ("image[]", picture(file_format="WEBP")), ("mask", picture()),
        ("size", "640x384"), ("strength", "0.25"), ("stream", "true"), ("embed_metadata", "false"), ("quality", "hd"),
    ]  # fmt: skip
    asked = await read(Task.EDIT, parts)

    pieces, content_type = encoded(asked)

    async def stream() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    texts, files = await parse_form(Headers({"content-type": content_type}), stream(), LIMITS)
    again = read_form_request(Task.EDIT, texts, files, LIMITS)
    assert again.to_json() == asked.to_json()
    assert [image.content for image in again.images] == [image.content for image in asked.images]
    assert again.mask is not None
