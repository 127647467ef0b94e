"""Column types that mean the same on SQLite and PostgreSQL."""

import json
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import orjson
from sqlalchemy import JSON, BigInteger, DateTime, Dialect, Integer, String, Text, TypeDecorator
from sqlalchemy.dialects.postgresql import JSONB


class UtcDateTime(TypeDecorator[datetime]):
    """Refuses naive times and returns aware ones; SQLite by itself drops the zone in silence."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else _in_utc(value)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _in_utc(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError(f"{value} has no time zone")
    return value.astimezone(UTC)


def storable_text(text: str) -> str:
    """`text` with what PostgreSQL cannot hold (NUL, half surrogates) replaced: a run must not fail by its record."""
    if text.isascii() and "\x00" not in text:
        return text
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()


def storable_json(value: Any) -> Any:
    """`value` as `json_text` takes it, with its strings made storable; itself, where nothing has to be done."""
    return _mended(value) if _plain_json(value) is None else value


def _plain_json(value: Any) -> str | None:
    """`value` as JSON; None where something in it has to be mended first."""
    try:
        text = orjson.dumps(value)
    except TypeError:
        return None
    return None if rb"\u0000" in text else text.decode()


def json_text(value: Any) -> str:
    """`value` as JSON, with null for numbers that JSON does not have (NaN, infinities)."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:
        # Integers beyond 64 bits. What else orjson does not take has been mended.
        return json.dumps(value)


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return storable_text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {storable_text(str(key)): _mended(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_mended(each) for each in value]
    return value


class FreeText(TypeDecorator[str]):
    """Text that people or foreign programs wrote."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return None if value is None else storable_text(value)


class Json(TypeDecorator[Any]):
    """JSON, binary on PostgreSQL. None is SQL's null."""

    impl = JSON(none_as_null=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> Any:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(JSONB(none_as_null=True))
        return dialect.type_descriptor(JSON(none_as_null=True))

    def process_bind_param(self, value: Any, dialect: Dialect) -> Any:
        return storable_json(value)


def _text_in_sqlite(text: str | None) -> str | None:
    return None if text is None else storable_text(text)


def _json_in_sqlite(value: Any) -> str | None:
    if value is None:
        return None
    plain = _plain_json(value)
    return json_text(_mended(value)) if plain is None else plain


def _time_in_sqlite(value: datetime | None) -> str | None:
    return None if value is None else _in_utc(value).isoformat(" ", "microseconds")[:-6]  # Without the zone.


def _remembering(convert: Callable[[Any], str | None]) -> Callable[[Any], str | None]:
    """The same, not worked out again for the very value that came last: all times of a row are mostly one."""
    last: tuple[Any, str | None] = None, None

    def remembered(value: Any) -> str | None:
        nonlocal last
        # By another name, as threads write too.
        found = last
        if value is not found[0]:
            found = last = value, convert(value)
        return found[1]

    return remembered


IN_SQLITE: Mapping[type[TypeDecorator[Any]], Callable[[Any], str | None]] = {
    FreeText: _text_in_sqlite,
    Json: _json_in_sqlite,
    UtcDateTime: _remembering(_time_in_sqlite),
}
"""What these types make of a value in SQLite, in one call each: by SQLAlchemy it is the same in three to six."""


# "C": lists are paged by id, so ids must sort the same in every database, whatever its language.
Id = String(40).with_variant(String(40, collation="C"), "postgresql")
Name = String(256)
Sha256 = String(64)
Seed = BigInteger()
Count = Integer()
Bytes = BigInteger()
