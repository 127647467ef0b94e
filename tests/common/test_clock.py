"""The time that processes agree on: another clock's, whatever this machine's says, and unmoved by one reading or the other."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from common.catalog import Catalog, new_id
from common.clock import AgreedClock, clock

TOLD = datetime(2030, 1, 1, tzinfo=UTC)


@pytest.fixture
def agreed() -> Iterator[AgreedClock]:
    """This process's clock, an hour ahead of this machine's."""
    clock.agree(datetime.now(UTC) + timedelta(hours=1), asked_s=time.monotonic())
    yield clock
    clock.stand_alone()


def test_until_it_is_told_another_time_it_is_the_machines():
    assert abs(AgreedClock().now_s() - time.time()) < 1


def test_it_goes_on_from_what_it_was_told_in_the_middle_of_the_question():
    alone = AgreedClock()
    asked_s = time.monotonic() - 4

    alone.agree(TOLD, asked_s=asked_s)

    assert timedelta(seconds=2) <= alone.utc_now() - TOLD < timedelta(seconds=3)


def test_a_reading_that_is_less_sure_and_does_not_contradict_moves_nothing():
    alone = AgreedClock()
    alone.agree(TOLD, asked_s=time.monotonic())
    alone.agree(TOLD - timedelta(seconds=1), asked_s=time.monotonic() - 4)

    assert alone.utc_now() - TOLD < timedelta(seconds=1)


def test_a_reading_that_contradicts_is_believed():
    alone = AgreedClock()
    alone.agree(TOLD, asked_s=time.monotonic())
    alone.agree(TOLD + timedelta(hours=1), asked_s=time.monotonic() - 4)

    assert alone.utc_now() - TOLD > timedelta(minutes=59)


def test_ids_sort_by_the_agreed_time(agreed: AgreedClock):
    later = new_id("run")
    agreed.stand_alone()

    assert new_id("run") < new_id("run") < later


async def test_an_open_catalog_tells_the_databases_time(agreed: AgreedClock, catalog_url: str):
    catalog = await Catalog.open(catalog_url)
    await catalog.close()

    assert abs(agreed.now_s() - time.time()) < 1
