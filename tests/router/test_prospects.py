"""Whose wait ends without a node, and what it costs to find out."""

from dataclasses import replace

import pytest

from common.errors import AquatintError, NoCapacity, WaitedTooLong
from router.fleet import Fleet
from router.placement import Ask, Candidate, Offer, Placement
from router.prospects import Prospects
from router.ticket import Ticket

MODEL = "m"
WAIT_S = 15.0
NODE = Candidate("n", "n", {MODEL: Offer(frozenset({"generation"}), 1.0, 0.0)}, 1, held=1, resident=(MODEL,))


class CountingFleet(Fleet):
    """Counts how often the nodes are looked at."""

    looks = 0

    def place(self, ask: Ask, now_s: float) -> Placement:
        """As a fleet does."""
        self.looks += 1
        return super().place(ask, now_s)


class Waiters:
    """Those that wait, on a clock of the test's."""

    def __init__(self) -> None:
        self.fleet = CountingFleet()
        self.fleet.put(NODE)
        self.ended: dict[str, AquatintError] = {}
        self.prospects = Prospects(self.fleet, no_capacity_wait_s=WAIT_S, end=self._end)

    def _end(self, ticket: Ticket, error: AquatintError) -> None:
        self.prospects.left(ticket)
        self.ended[ticket.run_id] = error

    def come(self, run_id: str, now_s: float, *, units: float = 1.0, model: str = MODEL, lasts_s: float = 600) -> Ticket:
        ask = Ask(model, "generation", units, kind=f"generation@{units}")
        ticket = Ticket(ask, now_s, units, run_id=run_id, deadline_s=now_s + lasts_s, since_s=now_s)
        self.prospects.came(ticket, now_s)
        return ticket

    def away(self, why: str | None) -> None:
        self.fleet.put(replace(NODE, away=why))

    def look(self, now_s: float) -> None:
        assert self.prospects.look(now_s, enough=lambda: False)


@pytest.fixture
async def waiters() -> Waiters:
    return Waiters()


async def test_one_look_at_the_nodes_tells_all_that_ask_for_the_same_however_many_and_long_they_are(waiters: Waiters):
    for number in range(1000):
        waiters.come(f"run {number}", 0.0, units=1.0 + number % 7)

    waiters.look(1.0)

    assert waiters.fleet.looks == 1
    assert waiters.ended == {}


async def test_a_wait_ends_at_its_deadline_and_not_before_and_not_of_those_that_have_left(waiters: Waiters):
    waiters.come("short", 0.0, lasts_s=5)
    waiters.prospects.left(waiters.come("gone", 0.0, lasts_s=5))
    waiters.come("long", 0.0, lasts_s=50)

    waiters.look(4.9)
    assert waiters.ended == {}
    waiters.look(5.0)

    assert list(waiters.ended) == ["short"]
    assert isinstance(waiters.ended["short"], WaitedTooLong)


async def test_deadlines_of_runs_that_were_served_long_ago_are_not_kept(waiters: Waiters):
    waiters.come("waits", 0.0)
    for number in range(5000):
        waiters.prospects.left(waiters.come(f"served {number}", 0.0))

    assert len(waiters.prospects._deadlines) <= 600


async def test_each_waits_for_a_node_to_come_back_for_as_long_as_it_may_counted_from_its_own_coming(waiters: Waiters):
    waiters.come("first", 0.0)
    waiters.away("offline")
    waiters.look(10.0)
    waiters.come("second", 20.0)

    waiters.look(10.0 + WAIT_S)
    assert list(waiters.ended) == ["first"]
    assert isinstance(waiters.ended["first"], NoCapacity)
    waiters.look(20.0 + WAIT_S)
    assert list(waiters.ended) == ["first", "second"]


async def test_a_node_that_came_back_in_between_gives_all_of_the_wait_anew(waiters: Waiters):
    waiters.come("run", 0.0)
    waiters.away("offline")
    waiters.look(0.0)
    waiters.away(None)
    waiters.look(10.0)
    waiters.away("offline")
    waiters.look(12.0)

    waiters.look(12.0 + WAIT_S - 0.1)
    assert waiters.ended == {}
    waiters.look(12.0 + WAIT_S)
    assert list(waiters.ended) == ["run"]


async def test_what_no_node_could_take_if_all_were_well_ends_at_once(waiters: Waiters):
    hopeless, other = waiters.come("hopeless", 0.0, model="unheard of"), waiters.come("other", 0.0)

    waiters.prospects.look_at(hopeless, 0.0)
    waiters.prospects.look_at(other, 0.0)

    assert list(waiters.ended) == ["hopeless"]


async def test_a_look_that_has_had_enough_goes_on_where_it_was(waiters: Waiters):
    for number in range(10):
        waiters.come(f"run {number}", 0.0, model=f"unheard of {number // 2}")
    rounds = 0

    while not waiters.prospects.look(0.0, enough=lambda: True):
        rounds += 1
        assert len(waiters.ended) == rounds

    assert len(waiters.ended) == 10
