"""Ids are ULIDs that sort by their making and cannot be guessed."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from common.catalog import new_id
from common.catalog.ids import DIGITS, Ids
from common.clock import AgreedClock, clock


@pytest.fixture
def wavering() -> Iterator[AgreedClock]:
    """This process's clock, to be set as one likes."""
    yield clock
    clock.stand_alone()


def milliseconds_of(ulid: str) -> int:
    """By the specification: the first ten digits."""
    return sum(DIGITS.index(digit) << 5 * (9 - place) for place, digit in enumerate(ulid[:10]))


def test_an_id_is_a_ulid_of_the_present_behind_its_prefix():
    before_s = clock.now_s()
    prefix, _, ulid = Ids().new("run").partition("_")
    after_s = clock.now_s()

    assert prefix == "run"
    assert len(ulid) == 26
    assert set(ulid) <= set(DIGITS)
    assert int(before_s * 1000) <= milliseconds_of(ulid) <= after_s * 1000


def test_ids_of_one_process_sort_in_the_order_in_which_they_were_made():
    made = [new_id("run") for _ in range(50_000)]

    assert made == sorted(made)
    assert len(set(made)) == len(made)


def test_they_do_so_while_the_clock_wavers(wavering: AgreedClock):
    first = new_id("run")
    wavering.agree(datetime.now(UTC) - timedelta(milliseconds=100), asked_s=time.monotonic())

    assert first < new_id("run") < new_id("run")


def test_what_follows_the_time_of_an_id_tells_nothing_of_the_next():
    random = [new_id("run")[-14:] for _ in range(2_000)]

    assert len(set(random)) == len(random)
    for place in range(14):
        assert {each[place] for each in random} == set(DIGITS)
