"""The field `upscale`: a picture made larger after it was made, by a second pass, an upscaling model, or both."""

from dataclasses import dataclass
from typing import Any

import orjson

from common.errors import InvalidRequest
from common.images_api.kinds import Kind, Number, Text, unreadable, wrong_type
from common.images_api.request import UpscaleAsk

MAX_BY = 4.0
_BY = Number(1, MAX_BY)
_KINDS: dict[str, Kind] = {"by": _BY, "method": Text(1, 200), "strength": Number(0, 1)}


@dataclass(frozen=True, slots=True)
class UpscaleObject:
    """An object, or the factor alone. In a form also a JSON string."""

    def read(self, name: str, value: Any) -> UpscaleAsk:
        if isinstance(value, int | float) and not isinstance(value, bool):
            value = {"by": value}
        if not isinstance(value, dict):
            raise wrong_type(name, "an object", value)
        if unknown := value.keys() - _KINDS.keys():
            raise InvalidRequest(f"Invalid {name!r}: unknown key {min(unknown)[:40]!r}.", param=name)
        given = {key: _value(f"{name}.{key}", kind, value[key]) for key, kind in _KINDS.items() if value.get(key) is not None}
        return UpscaleAsk(**given)

    def read_text(self, name: str, text: str) -> UpscaleAsk:
        try:
            return self.read(name, orjson.loads(text))
        except orjson.JSONDecodeError:
            raise unreadable(name, "an object") from None

    def describe(self) -> str:
        return f"`{{by, method, strength}}`, by 1..{MAX_BY:g}"

    def schema(self) -> dict[str, Any]:
        item = {
            "type": "object",
            "properties": {key: {"anyOf": [kind.schema(), {"type": "null"}]} for key, kind in _KINDS.items()},
            "additionalProperties": False,
        }
        return {"anyOf": [_BY.schema(), item]}


def _value(where: str, kind: Kind, value: Any) -> Any:
    # Where an SDK flattened the object into a form, all there is are texts.
    return kind.read_text(where, value) if isinstance(value, str) else kind.read(where, value)
