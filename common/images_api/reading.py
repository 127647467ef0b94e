"""Bytes of a request -> ImageRequest: the cheap checks, done before anything is queued. No pixel is touched here."""

from typing import Any

import orjson

from common.errors import InvalidRequest, UserImageError
from common.images_api.fields import FIELDS, Field
from common.images_api.kinds import json_type
from common.images_api.request import MAX_SEED, ImageRequest, Size, Task

MAX_JSON_BYTES = 1024 * 1024
"""A prompt of 32,000 characters, all written as \\u escapes of surrogate pairs, is 384 kB."""


def parse_json_object(body: bytes) -> dict[str, Any]:
    """Strict JSON: UTF-8, no NaN or Infinity, no lone surrogates, nesting bounded by the parser, an object at the top.

    Raises: InvalidRequest: anything else; the message never quotes the body.
    """
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(
            "We could not parse the JSON body of your request. "
            f"(The parser stopped at line {error.lineno}, column {error.colno}: {error.msg}.)",
            code="invalid_json",
        ) from None
    if not isinstance(value, dict):
        raise InvalidRequest(
            f"The body of the request must be a JSON object, but it is {json_type(value)}.", code="invalid_json"
        )
    return value


def read_json_request(task: Task, body: bytes) -> ImageRequest:
    """Read a JSON body for `task`.

    Keys nobody here knows are not an error (real clients send many); they are listed in `ignored`.
    Raises: InvalidRequest: a known field is missing, of the wrong type or out of bounds.
    """
    return read_fields(task, parse_json_object(body))


def read_fields(task: Task, given: dict[str, Any]) -> ImageRequest:
    """Check each field of the table in its order and build the request."""
    values: dict[str, Any] = {}
    known = {"model"}
    for field in FIELDS:
        if task not in field.tasks:
            continue
        known.update((field.name, *field.aliases))
        name, value = _given(field, given)
        if value is None:
            if field.name == "prompt":
                raise _missing("prompt", given)
            continue
        values[field.name] = field.kind.read(name, value)
    _refuse_streaming(values)
    size = _size(values)
    seed = _seed(values)
    kept = {field.name: values[field.name] for field in FIELDS if field.keeps and field.name in values}
    kept |= {"task": task, "size": size, "seed": seed, "prompt": kept.get("prompt", "")}
    return ImageRequest(**kept, ignored=tuple(printable(key) for key in given if key not in known))


def printable(key: str) -> str:
    """A key as it may stand in a header: printable ASCII, at most 64 characters."""
    return "".join(c if c.isascii() and c.isprintable() and c != "," else "?" for c in key[:64])


def _given(field: Field, given: dict[str, Any]) -> tuple[str, Any]:
    for name in (field.name, *field.aliases):
        if given.get(name) is not None:
            return name, given[name]
    return field.name, None


def _missing(name: str, given: dict[str, Any]) -> InvalidRequest:
    if name in given:
        return InvalidRequest(
            f"Invalid type for {name!r}: expected a string, but got null instead.", param=name, code="invalid_type"
        )
    return InvalidRequest(f"Missing required parameter: {name!r}.", param=name, code="missing_required_parameter")


def _refuse_streaming(values: dict[str, Any]) -> None:
    if values.get("stream"):
        raise InvalidRequest("Streaming is not supported by this model.", param="stream", code="unsupported_value")


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
