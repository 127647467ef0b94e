"""Uploads become pixels, whatever camera or program wrote them; what would do harm does it to nobody."""

import io
import struct
import zlib
from typing import Any

import pytest
from PIL import Image

from common.errors import UserImageError
from common.images_api import UploadLimits
from common.images_api.uploads import checked
from node.decoding import Decoder

LIMITS = UploadLimits(max_bytes=50_000_000, max_pixels=200_000_000, max_side_px=60_000)


def saved(picture: Image.Image, file_format: str, **options: Any) -> bytes:
    out = io.BytesIO()
    picture.save(out, file_format, **options)
    return out.getvalue()


async def decoded(content: bytes, *, max_pixels: int = 4_000_000) -> Image.Image:
    return await Decoder(max_pixels=max_pixels).decode(checked("image", (content,), LIMITS))


@pytest.mark.parametrize(
    ("mode", "file_format", "expected"),
    [
        ("RGB", "PNG", "RGB"),
        ("RGBA", "PNG", "RGBA"),
        ("L", "PNG", "RGB"),
        ("LA", "PNG", "RGBA"),
        ("P", "PNG", "RGB"),
        ("1", "PNG", "RGB"),
        ("I;16", "PNG", "RGB"),
        ("L", "JPEG", "RGB"),
        ("CMYK", "JPEG", "RGB"),
        ("RGB", "WEBP", "RGB"),
        ("RGBA", "WEBP", "RGBA"),
    ],
)
async def test_every_kind_of_pixel_is_read(mode: str, file_format: str, expected: str):
    # WebP drops an alpha channel that is opaque everywhere.
    colour = {"I;16": 40_000, "CMYK": (0, 100, 100, 50), "RGBA": (10, 200, 30, 90)}.get(mode, 128)
    picture = await decoded(saved(Image.new(mode, (12, 8), colour), file_format))

    assert (picture.mode, picture.size) == (expected, (12, 8))


async def test_sixteen_bits_are_scaled_not_cut_off():
    picture = await decoded(saved(Image.new("I;16", (4, 4), 0x8000), "PNG"))

    assert picture.getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize("orientation", range(1, 9))
async def test_a_picture_is_turned_as_its_camera_says(orientation: int):
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = Image.new("RGB", (16, 8), "white")
    picture = await decoded(saved(upright, "JPEG", exif=exif.tobytes()))

    assert picture.size == ((16, 8) if orientation < 5 else (8, 16))
    assert not picture.getexif()


async def test_of_several_frames_the_first_is_taken():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    phone = saved(frames[0], "MPO", save_all=True, append_images=frames[1:])

    assert (await decoded(content)).getpixel((0, 0)) == (255, 0, 0)
    assert (await decoded(phone)).size == (8, 8)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that says it is enormous."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\x00" * 10_000)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "content",
    [
        bomb(10_000, 10_000),
        saved(Image.new("RGB", (64, 64)), "PNG")[:60],
        saved(Image.effect_noise((64, 64), 50).convert("RGB"), "JPEG")[:300],
        saved(Image.new("RGB", (64, 64)), "WEBP")[:40],
    ],
    ids=["bomb", "cut png", "cut jpeg", "cut webp"],
)
async def test_what_cannot_be_decoded_is_said_to_be_so(content: bytes):
    with pytest.raises(UserImageError) as caught:
        await decoded(content)

    assert (caught.value.code, caught.value.status) == ("invalid_image_file", 400)
