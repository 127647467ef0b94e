"""The fleet as placement sees it: a node's state is worked out when it is asked for, and then it is what it is by now."""

from collections.abc import Callable

import pytest

from router.fleet import Fleet
from router.placement import Ask, Candidate, Offer

ASK = Ask("m", "generation", 1.0)
OFFER = Offer(frozenset({"generation"}), pace=1.0, load_s=1.0)


def node(name: str, *, held: int = 0, resident: tuple[str, ...] = ("m",)) -> Candidate:
    return Candidate(name, name, {"m": OFFER}, places=1, held=held, free_at_s=float(held), resident=resident)


class Working:
    """A node whose work changes; counts how often its state was worked out."""

    def __init__(self) -> None:
        self.held = self.looks = 0

    def now(self) -> Candidate:
        self.looks += 1
        return node("a", held=self.held)


@pytest.fixture
def fleet() -> Fleet:
    fleet = Fleet()
    for name in "ab":
        fleet.put(node(name))
    return fleet


@pytest.mark.parametrize(
    "asked",
    [
        lambda fleet: fleet.place(ASK, 0.0).node_id == "b",
        lambda fleet: fleet.candidates["a"].held == 1,
        lambda fleet: [each.held for each in fleet.nodes_having("m")] == [1, 0],
        lambda fleet: fleet.has_place,
    ],
    ids=["pick", "state", "those that have a model", "places"],
)
def test_who_asks_finds_a_node_as_it_is_by_now_and_worked_out_once(fleet: Fleet, asked: Callable[[Fleet], bool]):
    working = Working()
    for held in (0, 1, 0, 1):
        working.held = held
        fleet.put_soon("a", working.now)
    assert working.looks == 0

    assert asked(fleet)
    assert asked(fleet)

    assert working.looks == 1


def test_a_node_without_a_place_by_now_is_known_to_have_none(fleet: Fleet):
    working = Working()
    working.held = 1
    fleet.put(node("b", held=1))
    fleet.put_soon("a", working.now)

    assert not fleet.has_place
    assert not fleet.place(ASK, 0.0).has_place


def test_what_is_put_after_it_is_newer_and_a_node_that_was_dropped_is_not_worked_out(fleet: Fleet):
    working = Working()
    fleet.put_soon("a", working.now)
    fleet.put(node("a", resident=()))
    assert fleet.candidates["a"].resident == ()

    fleet.put_soon("a", working.now)
    fleet.drop("a")

    assert list(fleet.candidates) == ["b"]
    assert working.looks == 0
