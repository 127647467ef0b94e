"""Kinds of values a request field can hold: how each is read from JSON, and what OpenAI would say when it is wrong."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Generic, Protocol, TypeVar

import orjson

from common.errors import AquatintError, InvalidRequest, UserImageError
from common.images_api.request import Size

MAX_SIDE_PX = 16384
E = TypeVar("E", bound=StrEnum)
# Python's int() and float() also take other scripts' digits, underscores, "nan" and a final newline.
_INTEGER = re.compile(r"-?[0-9]{1,18}", re.ASCII)
_NUMBER = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,18})?([eE][+-]?[0-9]{1,3})?", re.ASCII)


class Kind(Protocol):
    """Reads one field's JSON value. `None` never arrives here: it means "not given"."""

    def read(self, name: str, value: Any) -> Any:
        """The typed value. Raises InvalidRequest naming the field, the rule and what was sent."""
        ...

    def read_text(self, name: str, text: str) -> Any:
        """The typed value of a form's text part. Raises InvalidRequest."""
        ...

    def describe(self) -> str:
        """The values it takes, for documentation."""
        ...

    def schema(self) -> dict[str, Any]:
        """The same as JSON Schema."""
        ...


def json_type(value: Any) -> str:
    """What OpenAI's messages call the type of a JSON value."""
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int):
        return "an integer"
    if isinstance(value, float):
        return "a decimal number"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, list):
        return "an array"
    return "null" if value is None else "an object"


def wrong_type(name: str, expected: str, value: Any) -> InvalidRequest:
    """OpenAI's answer to a value of the wrong JSON type."""
    return InvalidRequest(
        f"Invalid type for {name!r}: expected {expected}, but got {json_type(value)} instead.",
        param=name,
        code="invalid_type",
    )


def unreadable(name: str, expected: str) -> InvalidRequest:
    """OpenAI's answer to a text that is no value of the type."""
    return InvalidRequest(
        f"Invalid type for {name!r}: expected {expected}, but got a string value that could not be converted into {expected}.",
        param=name,
        code="invalid_type",
    )


def _outside(name: str, noun: str, value: float, minimum: float | None, maximum: float | None) -> AquatintError:
    if minimum is not None and value < minimum:
        return InvalidRequest(
            f"Invalid {name!r}: {noun} below minimum value. Expected a value >= {minimum:g}, but got {value!r} instead.",
            param=name,
            code=f"{noun}_below_min_value",
        )
    return InvalidRequest(
        f"Invalid {name!r}: {noun} above maximum value. Expected a value <= {maximum:.10g}, but got {value!r} instead.",
        param=name,
        code=f"{noun}_above_max_value",
    )


@dataclass(frozen=True, slots=True)
class Text:
    """A string of `min_length` to `max_length` code points. NUL is refused: no database column can hold it."""

    min_length: int = 0
    max_length: int = 1024

    def read(self, name: str, value: Any) -> str:
        if not isinstance(value, str):
            raise wrong_type(name, "a string", value)
        if self.min_length and not value.strip():
            raise InvalidRequest(
                f"Invalid {name!r}: empty string. Expected a string with minimum length {self.min_length}, "
                "but got an empty string instead.",
                param=name,
                code="empty_string",
            )
        if len(value) > self.max_length:
            raise InvalidRequest(
                f"Invalid {name!r}: string too long. Expected a string with maximum length {self.max_length}, "
                f"but got a string with length {len(value)} instead.",
                param=name,
                code="string_above_max_length",
            )
        if "\x00" in value:
            raise InvalidRequest(f"Invalid {name!r}: the string contains a NUL character.", param=name)
        return value

    def read_text(self, name: str, text: str) -> str:
        return self.read(name, text)

    def describe(self) -> str:
        return f"string, {self.min_length}..{self.max_length} characters"

    def schema(self) -> dict[str, Any]:
        # A string of blanks counts as empty.
        some = {"minLength": self.min_length, "pattern": r"^[\s\S]*\S[\s\S]*$"} if self.min_length else {}
        return {"type": "string", "maxLength": self.max_length} | some


@dataclass(frozen=True, slots=True)
class Integer:
    """A JSON integer within bounds. `2.0`, `"2"` and `true` are not integers."""

    minimum: int
    maximum: int

    def read(self, name: str, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong_type(name, "an integer", value)
        if not self.minimum <= value <= self.maximum:
            raise _outside(name, "integer", value, self.minimum, self.maximum)
        return value

    def read_text(self, name: str, text: str) -> int:
        if not _INTEGER.fullmatch(text):
            raise unreadable(name, "an integer")
        return self.read(name, int(text))

    def describe(self) -> str:
        return f"integer, {self.minimum}..{self.maximum}"

    def schema(self) -> dict[str, Any]:
        return {"type": "integer", "minimum": self.minimum, "maximum": self.maximum}


@dataclass(frozen=True, slots=True)
class Number:
    """A finite JSON number within bounds."""

    minimum: float
    maximum: float

    def read(self, name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise wrong_type(name, "a number", value)
        if not math.isfinite(value):
            raise InvalidRequest(f"Invalid {name!r}: the number is not finite.", param=name)
        if not self.minimum <= value <= self.maximum:
            raise _outside(name, "decimal", value, self.minimum, self.maximum)
        return float(value)

    def read_text(self, name: str, text: str) -> float:
        if not _NUMBER.fullmatch(text):
            raise unreadable(name, "a number")
        return self.read(name, float(text))

    def describe(self) -> str:
        return f"number, {self.minimum:g}..{self.maximum:g}"

    def schema(self) -> dict[str, Any]:
        return {"type": "number", "minimum": self.minimum, "maximum": self.maximum}


@dataclass(frozen=True, slots=True)
class Boolean:
    """A JSON boolean."""

    def read(self, name: str, value: Any) -> bool:
        if not isinstance(value, bool):
            raise wrong_type(name, "a boolean", value)
        return value

    def read_text(self, name: str, text: str) -> bool:
        if text.lower() not in ("true", "false"):
            raise unreadable(name, "a boolean")
        return text.lower() == "true"

    def describe(self) -> str:
        return "boolean"

    def schema(self) -> dict[str, Any]:
        return {"type": "boolean"}


class Choice(Generic[E]):
    """One of an enumeration's values, or an old name for one of them."""

    def __init__(
        self, choices: type[E], former: Mapping[str, E] | None = None, refused: Mapping[str, str] | None = None
    ) -> None:
        self._values: dict[str, E] = {str(member): member for member in choices} | dict(former or {})
        self._refused = dict(refused or {})

    def read(self, name: str, value: Any) -> E:
        if not isinstance(value, str):
            raise wrong_type(name, "a string", value)
        if value in self._refused:
            raise UserImageError(self._refused[value], param=name)
        if value not in self._values:
            *most, last = [repr(v) for v in self._values]
            supported = f"{', '.join(most)}, and {last}" if most else last
            raise InvalidRequest(f"Invalid value: {value[:40]!r}. Supported values are: {supported}.", param=name)
        return self._values[value]

    def read_text(self, name: str, text: str) -> E:
        return self.read(name, text)

    def describe(self) -> str:
        return ", ".join(f"`{v}`" for v in self._values)

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "enum": list(self._values)}


@dataclass(frozen=True, slots=True)
class SizeText:
    """`auto` (None) or `WIDTHxHEIGHT` in pixels."""

    def read(self, name: str, value: Any) -> Size | None:
        if not isinstance(value, str):
            raise wrong_type(name, "a string", value)
        return None if value == "auto" else Size.parse(value)

    def read_text(self, name: str, text: str) -> Size | None:
        return self.read(name, text)

    def describe(self) -> str:
        return "`auto` or `WIDTHxHEIGHT` in pixels"

    def schema(self) -> dict[str, Any]:
        return {"type": "string", "pattern": "^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$"}


@dataclass(frozen=True, slots=True)
class Refused:
    """A field of OpenAI's that has no meaning here: `message` says why. `{name}` in it is the field."""

    message: str

    def read(self, name: str, value: Any) -> Any:
        raise InvalidRequest(self.message.format(name=name), param=name, code="unsupported_parameter")

    def read_text(self, name: str, text: str) -> Any:
        return self.read(name, text)

    def describe(self) -> str:
        return "refused"

    def schema(self) -> dict[str, Any]:
        return {"type": "null"}


@dataclass(frozen=True, slots=True)
class JsonObject:
    """A JSON object, kept as it is; in a form, a JSON string."""

    def read(self, name: str, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise wrong_type(name, "an object", value)
        return value

    def read_text(self, name: str, text: str) -> dict[str, Any]:
        try:
            return self.read(name, orjson.loads(text))
        except orjson.JSONDecodeError:
            raise unreadable(name, "an object") from None

    def describe(self) -> str:
        return "object"

    def schema(self) -> dict[str, Any]:
        return {"type": "object"}
