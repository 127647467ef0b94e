"""Uploaded pictures: taken by content, bounded by bytes and by pixels before any of them is decoded."""

import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pybase64

from common.errors import InvalidRequest, UserImageError
from common.images_api.kinds import wrong_type
from common.images_api.request import Pieces, Upload
from common.images_api.sniff import Header, sniff
from common.upload_limits import UploadLimits

FIRST_BYTES = 64
"""Enough to tell what a file is, if not yet how large."""
MAX_IMAGES = 16
"""OpenAI's limit for the images of one edit."""
TAKEN = "'image/jpeg', 'image/png', and 'image/webp'"


@dataclass(slots=True)
class Attached:
    """The files of a request as they came, before they are looked at."""

    images: list[tuple[str, Pieces]] = field(default_factory=list)
    """(name for messages, content)"""
    mask: Pieces | None = None
    controls: list[tuple[str, Pieces]] = field(default_factory=list)
    """Of `control_image`, for controls that come without a picture of their own."""


def checked(name: str, pieces: Pieces, limits: UploadLimits) -> Upload:
    """An upload after every check that needs no decoding.

    Raises: InvalidRequest: not one of the three formats, or too large in bytes; UserImageError: broken, or too many pixels.
    """
    if sum(map(len, pieces)) > limits.max_bytes:
        raise too_large(name, limits)
    header = _header_of(pieces)
    if header is None:
        raise broken(name)
    if header.format is None:
        raise InvalidRequest(
            f"Invalid file {name!r}: unsupported mimetype ({header.media_type!r}). Supported file formats are {TAKEN}.",
            param=name,
            code="unsupported_file_mimetype",
        )
    if header.width_px * header.height_px > limits.max_pixels or max(header.width_px, header.height_px) > limits.max_side_px:
        raise UserImageError(
            f"Invalid file {name!r}: {header.width_px}x{header.height_px} is too large. At most {limits.max_pixels:,} pixels "
            f"and {limits.max_side_px} px a side are taken.",
            param=name,
            code="image_too_large",
        )
    return Upload(name, pieces, header.format, header.width_px, header.height_px)


def _header_of(pieces: Pieces) -> Header | None:
    """What stands before a JPEG's header, a camera's preview or a colour profile, may be longer than the first piece."""
    if len(pieces) > 1 and len(pieces[0]) >= FIRST_BYTES and (header := sniff(pieces[0])) is not None:
        return header
    return sniff(b"".join(pieces))


def too_large(name: str, limits: UploadLimits) -> InvalidRequest:
    """What a file above the limit of bytes is answered."""
    return InvalidRequest(
        f"Invalid file {name!r}: larger than the limit of {limits.max_bytes:,} bytes.", param=name, code="image_too_large"
    )


def broken(name: str) -> UserImageError:
    """What an undecodable picture is answered; OpenAI counts images from 1."""
    number = "".join(c for c in name if c.isdigit())
    which = name if name == "mask" or name.startswith("control") else f"image {int(number) + 1 if number else 1}"
    return UserImageError(f"Invalid image file or mode for {which}, please check your image file.", code="invalid_image_file")


def attached(files: Attached, limits: UploadLimits, *, most: int = MAX_IMAGES) -> tuple[tuple[Upload, ...], Upload | None]:
    """The images and the mask of a request, checked. most: how many images the route takes.

    Raises: InvalidRequest: none, or too many; what `checked` raises; UserImageError: the mask's size is another.
    """
    if not files.images:
        raise InvalidRequest("Missing required parameter: 'image'.", param="image", code="missing_required_parameter")
    if len(files.images) > most:
        raise InvalidRequest(
            f"Invalid 'image': too many images. Expected at most {most}, but got {len(files.images)} instead.",
            param="image",
            code="array_above_max_length",
        )
    images = tuple(checked(name, pieces, limits) for name, pieces in files.images)
    if files.mask is None:
        return images, None
    mask = checked("mask", files.mask, limits)
    return images, mask


def from_json(given: Mapping[str, Any], limits: UploadLimits, fetched: Mapping[str, bytes]) -> Attached:
    """The files of a JSON edit: `images: [{"image_url": "data:..."}]` and `mask`. fetched: what lay behind other URLs.

    Raises: InvalidRequest: shapes, urls that are no data URLs, base64 that is none.
    """
    if "image" in given:
        raise InvalidRequest(
            "Unknown parameter: 'image'. For application/json on /v1/images/edits, use 'images' (array).", param="image"
        )
    images = given.get("images")
    if images is None:
        raise InvalidRequest("Missing required parameter: 'images'.", param="images", code="missing_required_parameter")
    if not isinstance(images, list):
        raise wrong_type("images", "an array", images)
    if not images:
        raise InvalidRequest(
            "Invalid 'images': empty array. Expected an array with minimum length 1, but got an empty array instead.",
            param="images",
            code="empty_array",
        )
    names = [f"images[{index}]" for index in range(len(images))]
    files = Attached([(name, (_referenced(name, item, limits, fetched),)) for name, item in zip(names, images, strict=True)])
    if given.get("mask") is not None:
        files.mask = (_referenced("mask", given["mask"], limits, fetched),)
    return files


def _referenced(name: str, item: Any, limits: UploadLimits, fetched: Mapping[str, bytes]) -> bytes:
    if not isinstance(item, dict):
        raise wrong_type(name, "an object", item)
    if item.get("file_id") is not None:
        raise InvalidRequest(f"Invalid '{name}.file_id': this server keeps no files.", param=f"{name}.file_id")
    url = item.get("image_url")
    if url is None:
        raise InvalidRequest(
            f"Missing required parameter: '{name}.image_url'.", param=f"{name}.image_url", code="missing_required_parameter"
        )
    if not isinstance(url, str):
        raise wrong_type(f"{name}.image_url", "a string", url)
    return fetched[url] if url in fetched else data_url(f"{name}.image_url", url, limits)


def data_url(where: str, url: str, limits: UploadLimits) -> bytes:
    """The content of a base64 data URL. where: its place in the request, for messages. Raises: InvalidRequest."""
    head, comma, data = url.partition(",")
    if not head.lower().startswith("data:") or not comma:
        raise InvalidRequest(
            f"Invalid {where!r}: only data URLs are taken; this server fetches nothing.",
            param=where,
            code="invalid_image_url",
        )
    if not head.lower().endswith(";base64"):
        raise InvalidRequest(f"Invalid {where!r}: the data URL must be base64.", param=where)
    if len(data) > limits.max_bytes * 4 // 3 + 4:
        raise too_large(where.removesuffix(".image_url"), limits)
    try:
        return pybase64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"Invalid {where!r}: not valid base64.", param=where) from None


def same_size(images: Sequence[Upload], mask: Upload) -> bool:
    """Whether a mask is as large as the first image. Sizes before turning by EXIF: a mask has none."""
    return (mask.width_px, mask.height_px) == (images[0].width_px, images[0].height_px)
