"""What is stored of a value is the same by whichever way it came."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

from common.catalog.columns import IN_SQLITE, FreeText, Json, UtcDateTime, json_text

DIALECT = SQLiteDialect_pysqlite(json_serializer=json_text)
ZONES = st.sampled_from([UTC, timezone(timedelta(hours=9)), timezone(timedelta(hours=-3, minutes=-30))])
TEXTS = st.text(st.characters(exclude_categories=())) | st.sampled_from(["a\x00b", "\ud800", "é\x00", ""])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


def by_sqlalchemy(kind: Any, value: Any) -> Any:
    return kind().dialect_impl(DIALECT).bind_processor(DIALECT)(value)


@given(st.none() | TEXTS)
def test_text_is_stored_as_sqlalchemy_stores_it(text: str | None):
    assert IN_SQLITE[FreeText](text) == by_sqlalchemy(FreeText, text)


@given(JSON)
def test_json_is_stored_as_sqlalchemy_stores_it(value: Any):
    assert IN_SQLITE[Json](value) == by_sqlalchemy(Json, value)


@given(st.none() | st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31), timezones=ZONES))
def test_times_are_stored_as_sqlalchemy_stores_them(at: datetime | None):
    assert IN_SQLITE[UtcDateTime](at) == by_sqlalchemy(UtcDateTime, at)


def test_a_time_without_a_zone_is_refused():
    with pytest.raises(ValueError, match="no time zone"):
        IN_SQLITE[UtcDateTime](datetime(2026, 1, 1))
