"""Predicting anew what becomes of all that wait, a while at a time."""

import time

import pytest

from router.fleet import Fleet
from router.forecast import Forecast
from router.foretelling import AT_A_TIME, Foretelling
from router.line import Line
from router.placement import Ask, Candidate, Offer
from router.ticket import Ticket

MODEL = "m"
COUNT = 4 * AT_A_TIME + 3
WITHIN_S = 0.5
"""Predictions count from when they were made."""


def ticket(number: int) -> Ticket:
    return Ticket(Ask(MODEL, "generation", 1.0), number, 1.0, run_id=str(number), deadline_s=1e9, since_s=number)


@pytest.fixture
async def house() -> tuple[Line[Ticket], Fleet, Foretelling]:
    line, fleet = Line[Ticket](), Fleet()
    offers = {MODEL: Offer(frozenset({"generation"}), 1.0, 0.0)}
    fleet.put(Candidate("n", "n", offers, 1, resident=(MODEL,)))
    for number in range(COUNT):
        line.add(ticket(number))
    return line, fleet, Foretelling(line, fleet)


def turns_of(foretelling: Foretelling) -> int:
    """Until all is predicted, as little as can be done in each."""
    turns, looked = 0, False

    def enough() -> bool:
        nonlocal looked
        looked = not looked
        return not looked

    while not foretelling.go_on(enough=enough):
        turns += 1
    return turns


async def test_in_many_turns_the_same_is_predicted_as_in_one(house: tuple[Line[Ticket], Fleet, Foretelling]):
    line, fleet, foretelling = house
    whole = Forecast().play(list(line), fleet, time.monotonic())

    assert turns_of(foretelling) >= COUNT // AT_A_TIME

    for waiting, expected in zip(line, whole, strict=True):
        assert waiting.foreseen is not None
        assert waiting.foreseen.position == expected.position
        assert waiting.foreseen.finish_s == pytest.approx(expected.finish_s, abs=WITHIN_S)


async def test_those_that_come_meanwhile_are_foreseen_behind_and_those_that_come_next_behind_them(
    house: tuple[Line[Ticket], Fleet, Foretelling],
):
    line, fleet, foretelling = house
    assert not foretelling.go_on(enough=iter([False, True]).__next__)
    late = ticket(COUNT)
    line.add(late)
    foretelling.joined(late)

    turns_of(foretelling)

    assert late.foreseen is not None
    assert late.foreseen.position == COUNT + 1
    after = foretelling.forecast.join(COUNT + 2, Ask(MODEL, "generation", 1.0), fleet, time.monotonic(), keep=False)
    assert after.finish_s == pytest.approx(COUNT + 2, abs=WITHIN_S)


async def test_what_was_served_meanwhile_is_told_nothing_more(house: tuple[Line[Ticket], Fleet, Foretelling]):
    line, _, foretelling = house
    assert not foretelling.go_on(enough=iter([False, True]).__next__)
    [*_, last] = line
    line.serve(last)

    turns_of(foretelling)

    assert last.foreseen is None
