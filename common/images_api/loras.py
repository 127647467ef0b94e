"""LoRAs in a request: the field `loras`, and `<lora:name:scale>` in a prompt. Names are keys, never paths."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from common.errors import InvalidRequest
from common.images_api.kinds import Boolean, Number, json_type, unreadable, wrong_type
from common.images_api.request import LoraAsk

MAX_LORAS = 8
MAX_SCALE = 4.0
MAX_NAME_CHARACTERS = 200
NAME_PATTERN = r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f][^\x00-\x1f\x7f-\x9f]*$"
"""No control characters, and not only spaces."""
SCALE_NAMES = ("scale", "weight", "multiplier", "strength")
"""The scale's name here, and what other servers call it."""

_SCALE = Number(-MAX_SCALE, MAX_SCALE)
# A tag behind a backslash is text. The name may hold colons (an AIR does), so it ends at the last one before a number.
_TAG = re.compile(r"(\\)?<lora:([^<>\n]{1,400}?)(?::\s*([+-]?(?:[0-9]{1,9}(?:\.[0-9]{0,9})?|\.[0-9]{1,9}))\s*)?>")


@dataclass(frozen=True, slots=True)
class LoraList:
    """A list of LoRAs, or a single one; each an object or a bare name. In a form also a JSON string."""

    def read(self, name: str, value: Any) -> tuple[LoraAsk, ...]:
        items = value if isinstance(value, list) else [value]
        asks = tuple(_ask(name, item) for item in items)
        _check_number(asks, name)
        return asks

    def read_text(self, name: str, text: str) -> tuple[LoraAsk, ...]:
        if text[:1] not in ("[", "{"):
            return self.read(name, text)
        try:
            return self.read(name, orjson.loads(text))
        except orjson.JSONDecodeError:
            raise unreadable(name, "an array") from None

    def describe(self) -> str:
        return f"up to {MAX_LORAS} of `{{name, scale, trigger}}`, scale -{MAX_SCALE:g}..{MAX_SCALE:g}"

    def schema(self) -> dict[str, Any]:
        return {"type": "array", "maxItems": MAX_LORAS, "items": _ITEM}


_ITEM: dict[str, Any] = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "maxLength": MAX_NAME_CHARACTERS, "pattern": NAME_PATTERN},
        "trigger": {"type": ["boolean", "null"]},
    }
    | {key: {"anyOf": [_SCALE.schema(), {"type": "null"}]} for key in SCALE_NAMES},
    "additionalProperties": False,
}


def _ask(field: str, item: Any) -> LoraAsk:
    if isinstance(item, str):
        item = {"name": item}
    if not isinstance(item, dict):
        raise wrong_type(field, "an array of objects", item)
    if unknown := item.keys() - {"name", "trigger", *SCALE_NAMES}:
        raise InvalidRequest(
            f"Invalid {field!r}: unknown key {min(unknown)[:40]!r}. A LoRA is {{name, scale, trigger}}: it is named, "
            "never given by a path or an address.",
            param=field,
        )
    name = item.get("name")
    if not isinstance(name, str):
        raise InvalidRequest(
            f"Invalid {field!r}: each needs a 'name', a string, but got {json_type(name)}.", param=field, code="invalid_type"
        )
    return LoraAsk(_checked_name(field, name), _scale(field, item), _trigger(field, item))


def _checked_name(field: str, name: str) -> str:
    if len(name) > MAX_NAME_CHARACTERS or not re.fullmatch(NAME_PATTERN.removesuffix("$"), name):
        raise InvalidRequest(
            f"Invalid {field!r}: a name has 1 to {MAX_NAME_CHARACTERS} characters, no control characters among them.",
            param=field,
        )
    return name


def _scale(field: str, item: Mapping[str, Any]) -> float:
    given = [item[key] for key in SCALE_NAMES if item.get(key) is not None]
    # Where an SDK flattened the list into a form, all there is are texts. All are checked; the first counts.
    scales = [_SCALE.read_text(field, value) if isinstance(value, str) else _SCALE.read(field, value) for value in given]
    return scales[0] if scales else 1.0


def _trigger(field: str, item: Mapping[str, Any]) -> bool:
    value = item.get("trigger")
    if value is None:
        return False
    return Boolean().read_text(field, value) if isinstance(value, str) else Boolean().read(field, value)


def _check_number(asks: tuple[LoraAsk, ...], field: str) -> None:
    if len(asks) > MAX_LORAS:
        raise InvalidRequest(
            f"Invalid {field!r}: array too long. Expected an array with maximum length {MAX_LORAS}, "
            f"but got an array with length {len(asks)} instead.",
            param=field,
            code="array_above_max_length",
        )


def tags_in(prompt: str) -> tuple[str, tuple[LoraAsk, ...]]:
    """The prompt without its tags, and the LoRAs they name. A tag behind a backslash stays, without the backslash.

    Raises: InvalidRequest: a scale outside the limits.
    """
    asks: list[LoraAsk] = []

    def take(match: re.Match[str]) -> str:
        if match[1]:
            return match[0][1:]
        scale = float(match[3]) if match[3] else 1.0
        if abs(scale) > MAX_SCALE:
            raise InvalidRequest(f"Invalid 'prompt': the scale of a LoRA is -{MAX_SCALE:g} to {MAX_SCALE:g}.", param="prompt")
        asks.append(LoraAsk(_checked_name("prompt", match[2].strip()), scale))
        return ""

    text = _TAG.sub(take, prompt)
    # A tag between words leaves one space, not two; a prompt without tags stays as it is to the letter.
    return (re.sub(r" {2,}", " ", text).strip() if asks else text), tuple(asks)


def asked_for(prompt: str, loras: tuple[LoraAsk, ...]) -> tuple[str, tuple[LoraAsk, ...]]:
    """Field and tags of one request together: the prompt without tags, and every LoRA.

    Raises: InvalidRequest: more than MAX_LORAS, or a scale outside the limits.
    """
    if not loras and "<lora:" not in prompt:
        return prompt, ()
    text, tagged = tags_in(prompt)
    asks = (*loras, *tagged)
    _check_number(asks, "loras")
    return text, asks
