"""Bytes of a request -> ImageRequest: the cheap checks, done before anything is queued. No pixel is decoded here."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import orjson

from common.errors import InvalidRequest, UnreadableBody, UserImageError
from common.images_api.control import with_pictures
from common.images_api.fields import FIELDS
from common.images_api.kinds import json_type
from common.images_api.request import MAX_SEED, ImageRequest, Pieces, Size, Task, Upload
from common.images_api.uploads import Attached, attached, from_json, same_size
from common.upload_limits import UploadLimits

MAX_JSON_BYTES = 1024 * 1024
"""A prompt of 32,000 characters, all written as \\u escapes of surrogate pairs, is 384 kB."""

_FILE_KEYS = frozenset({"image", "images", "mask"})
_PLACES = {
    task: {name: place for place, field in enumerate(FIELDS) if task in field.tasks for name in field.names} for task in Task
}
"""Where in the table a field stands, by all its names, for each task."""
_ALWAYS = {task: {places[name] for name in ("prompt", "n") if name in places} for task, places in _PLACES.items()}
"""Fields that are looked at whether they are given or not."""
_KEPT = frozenset(field.name for field in FIELDS if field.keeps)


def parse_json_object(body: bytes) -> dict[str, Any]:
    """Strict JSON: UTF-8, no NaN or Infinity, no lone surrogates, nesting bounded by the parser, an object at the top.

    Raises: UnreadableBody: anything else; the message never quotes the body.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise UnreadableBody(
            "We could not parse the JSON body of your request. "
            f"(The parser stopped at line {error.lineno}, column {error.colno}: {error.msg}.)"
        ) from None
    if not isinstance(value, dict):
        raise UnreadableBody(f"The body of the request must be a JSON object, but it is {json_type(value)}.")
    return value


def read_json_request(
    task: Task, body: bytes, limits: UploadLimits | None = None, fetched: Mapping[str, bytes] = MappingProxyType({})
) -> ImageRequest:
    """Read a JSON body for `task`. fetched: the content of pictures it names by URL, where such are taken.

    Keys nobody here knows are not an error (real clients send many); they are listed in `ignored`.
    Raises: InvalidRequest: a known field is missing, of the wrong type or out of bounds; uploads as `uploads.checked` says.
    """
    given = parse_json_object(body)
    limits = limits or UploadLimits()
    return _read(task, given, lambda: from_json(given, limits, fetched), (), limits)


def read_form_request(task: Task, texts: Mapping[str, Any], files: Attached, limits: UploadLimits) -> ImageRequest:
    """Read a form: text parts by name (nested ones already gathered), and its files. Raises as `read_json_request`."""
    # An empty part is how forms say "not given"; only a prompt may be told that it is empty.
    given = {name: value for name, value in texts.items() if value != "" or name == "prompt"}
    return _read(task, given, lambda: files, files.controls, limits, form=True)


def _read(
    task: Task,
    given: Mapping[str, Any],
    files: Callable[[], Attached],
    control_files: Sequence[tuple[str, Pieces]],
    limits: UploadLimits,
    *,
    form: bool = False,
) -> ImageRequest:
    """Check what is given of the table's fields, in its order, images before `n`, and build the request.

    form: whether values that are texts may be written for another type.
    """
    values: dict[str, Any] = {}
    places = _PLACES[task]
    images: tuple[Upload, ...] = ()
    mask: Upload | None = None
    told: list[str] = []
    for place in sorted(_ALWAYS[task] | {places[name] for name in given if name in places}):
        field = FIELDS[place]
        if field.name == "n" and task is not Task.GENERATION:
            images, mask = attached(files(), limits, most=1 if task is Task.VARIATION else 16)
        for name in field.names:
            if (value := given.get(name)) is not None:
                read = field.kind.read_text if form and isinstance(value, str) else field.kind.read
                # Under several names at once each must be right, and the first of the table's order counts.
                values.setdefault(field.name, read(name, value))
        if field.name == "prompt" and "prompt" not in values:
            raise _missing("prompt", given)
        if field.told and field.name in values:
            told.append(field.name)
    if "control" in values or control_files:
        values["control"] = with_pictures(values.get("control", ()), control_files, limits)
    _check_together(values, images, mask)
    kept = {name: value for name, value in values.items() if name in _KEPT}
    kept |= {"task": task, "size": _size(values), "seed": _seed(values), "prompt": kept.get("prompt", "")}
    told += [printable(key) for key in given if key not in places and (task is Task.GENERATION or key not in _FILE_KEYS)]
    return ImageRequest(**kept, images=images, mask=mask, ignored=tuple(told))


def printable(key: str) -> str:
    """A key as it may stand in a header: printable ASCII, at most 64 characters."""
    return "".join(c if c.isascii() and c.isprintable() and c != "," else "?" for c in key[:64])


def _missing(name: str, given: Mapping[str, Any]) -> InvalidRequest:
    if name in given:
        return InvalidRequest(
            f"Invalid type for {name!r}: expected a string, but got null instead.", param=name, code="invalid_type"
        )
    return InvalidRequest(f"Missing required parameter: {name!r}.", param=name, code="missing_required_parameter")


def _check_together(values: dict[str, Any], images: tuple[Upload, ...], mask: Upload | None) -> None:
    """Rules that hold between fields."""
    if values.get("stream") and values.get("n", 1) > 1:
        raise InvalidRequest("Streaming is only supported with n=1.", param="n", code="unsupported_value")
    if mask is not None and not same_size(images, mask):
        raise UserImageError(
            "Invalid mask image format - mask size does not match image size", code="invalid_mask_image_format"
        )


def _size(values: dict[str, Any]) -> Size | None:
    width, height = values.get("width"), values.get("height")
    if (width is None) != (height is None):
        raise UserImageError("'width' and 'height' must be given together.", param="width" if width is None else "height")
    if width is not None and height is not None:
        return Size(width, height)
    size: Size | None = values.get("size")
    return size


def _seed(values: dict[str, Any]) -> int | None:
    seed = values.get("seed", -1)
    if seed == -1:
        return None
    last = seed + values.get("n", 1) - 1
    if last > MAX_SEED:
        raise InvalidRequest(
            f"Invalid 'seed': image i is made from seed + i, and {last} is above the largest seed, {MAX_SEED}.",
            param="seed",
            code="integer_above_max_value",
        )
    return int(seed)
