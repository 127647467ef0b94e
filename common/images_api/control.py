"""Pictures that guide a run: the field `control`, and the pictures its items come with."""

import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import pybase64

from common.errors import InvalidRequest
from common.images_api.kinds import Choice, Kind, Number, Text, unreadable, wrong_type
from common.images_api.request import ControlAsk, ControlKind, Pieces, Preprocess
from common.images_api.uploads import checked, data_url, too_large
from common.upload_limits import UploadLimits

MAX_CONTROLS = 4
MAX_SCALE = 2.0

_KINDS: dict[str, Kind] = {
    "name": Text(1, 200),
    "kind": Choice(ControlKind),
    "scale": Number(0, MAX_SCALE),
    "start": Number(0, 1),
    "end": Number(0, 1),
    "preprocess": Choice(Preprocess),
}


def max_control_bytes(limits: UploadLimits) -> int:
    """The most that the controls of one request may take where their pictures are written as base64."""
    return (limits.max_bytes * 4 // 3 + 1024) * MAX_CONTROLS


@dataclass(frozen=True, slots=True)
class Draft:
    """One item as it was written: its picture is still a text, or one of the files beside it."""

    values: Mapping[str, Any]
    image: str | None


@dataclass(frozen=True, slots=True)
class ControlList:
    """A list of controls, or a single one. In a form also a JSON string."""

    def read(self, name: str, value: Any) -> tuple[Draft, ...]:
        items = value if isinstance(value, list) else [value]
        if len(items) > MAX_CONTROLS:
            raise InvalidRequest(
                f"Invalid {name!r}: array too long. Expected an array with maximum length {MAX_CONTROLS}, "
                f"but got an array with length {len(items)} instead.",
                param=name,
                code="array_above_max_length",
            )
        return tuple(_draft(f"{name}[{at}]", item) for at, item in enumerate(items))

    def read_text(self, name: str, text: str) -> tuple[Draft, ...]:
        try:
            return self.read(name, orjson.loads(text))
        except orjson.JSONDecodeError:
            raise unreadable(name, "an array") from None

    def describe(self) -> str:
        return f"up to {MAX_CONTROLS} of `{{kind or name, image, scale, start, end, preprocess}}`"

    def schema(self) -> dict[str, Any]:
        return {"type": "array", "maxItems": MAX_CONTROLS, "items": _ITEM}


_ITEM: dict[str, Any] = {
    "type": "object",
    "anyOf": [{"required": [key], "properties": {key: {"type": "string"}}} for key in ("name", "kind")],
    "properties": {key: {"anyOf": [kind.schema(), {"type": "null"}]} for key, kind in _KINDS.items()}
    | {
        "image": {
            "type": "string",
            "format": "uri",
            "description": "A base64 data URL of a PNG, JPEG or WebP file; in a form, `control_image` may hold it instead.",
        }
    },
    "additionalProperties": False,
}


def _draft(where: str, item: Any) -> Draft:
    if not isinstance(item, dict):
        raise wrong_type(where, "an object", item)
    if unknown := item.keys() - {"image", *_KINDS}:
        raise InvalidRequest(f"Invalid {where!r}: unknown key {min(unknown)[:40]!r}.", param=where)
    values = {key: _value(f"{where}.{key}", kind, item[key]) for key, kind in _KINDS.items() if item.get(key) is not None}
    if "name" not in values and "kind" not in values:
        raise InvalidRequest(
            f"Missing required parameter: '{where}.kind'. A control is chosen by its kind or by its name.",
            param=f"{where}.kind",
            code="missing_required_parameter",
        )
    if values.get("start", 0.0) >= values.get("end", 1.0):
        raise InvalidRequest(f"Invalid '{where}.end': it must be above 'start'.", param=f"{where}.end")
    image = item.get("image")
    if image is not None and not isinstance(image, str):
        raise wrong_type(f"{where}.image", "a string", image)
    return Draft(values, image)


def _value(where: str, kind: Kind, value: Any) -> Any:
    # Where an SDK flattened the list into a form, all there is are texts.
    return kind.read_text(where, value) if isinstance(value, str) else kind.read(where, value)


def with_pictures(drafts: Sequence[Draft], files: Sequence[tuple[str, Pieces]], limits: UploadLimits) -> tuple[ControlAsk, ...]:
    """The controls of a request, each with its picture: its own, or the next of the form's `control_image` files.

    Raises: InvalidRequest: one without a picture, or a file that belongs to none; what `uploads.checked` raises.
    """
    waiting = list(files)
    controls = []
    for at, draft in enumerate(drafts):
        where = f"control[{at}].image"
        if draft.image is not None:
            pieces: Pieces = (_decoded(where, draft.image, limits),)
        elif waiting:
            pieces = waiting.pop(0)[1]
        else:
            raise InvalidRequest(f"Missing required parameter: {where!r}.", param=where, code="missing_required_parameter")
        controls.append(ControlAsk(checked(where, pieces, limits), **draft.values))
    if waiting:
        raise InvalidRequest("Invalid 'control_image': there are more files than controls without a picture.", param="control")
    return tuple(controls)


def _decoded(where: str, text: str, limits: UploadLimits) -> bytes:
    """The content of a data URL, or of plain base64."""
    if text[:5].lower() == "data:":
        return data_url(where, text, limits)
    if len(text) > limits.max_bytes * 4 // 3 + 4:
        raise too_large(where, limits)
    try:
        return pybase64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"Invalid {where!r}: neither a data URL nor base64.", param=where) from None
