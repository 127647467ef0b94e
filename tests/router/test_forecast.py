"""When those that wait will be done, as foreseen."""

import heapq
from collections.abc import Sequence
from dataclasses import replace

import pytest

from router.fleet import Fleet, bind
from router.forecast import MOST_LOOKS, Forecast
from router.line import Line, Waiting
from router.placement import Ask, Candidate, Offer, Placement, with_run

MODEL = "m"


def fleet_of(*paces: float, load_s: float = 0.0, resident: bool = True) -> Fleet:
    fleet = Fleet()
    for number, pace in enumerate(paces):
        offers = {MODEL: Offer(frozenset({"generation"}), pace, load_s)}
        name = f"n{number}"
        fleet.put(Candidate(name, name, offers, 2, resident=(MODEL,) if resident else ()))
    return fleet


def run_of(units: float, *, at_s: float = 0.0) -> Waiting:
    return Waiting(Ask(MODEL, "generation", units), at_s, units)


def carried_out(runs: Sequence[Waiting], fleet: Fleet) -> list[float]:
    """When each is done where all that wait are bound as places come free: the router's own code, on a clock that jumps."""
    line: Line[Waiting] = Line()
    for run in runs:
        line.add(run)
    done: dict[int, float] = {}
    ends: list[tuple[float, int, str]] = []
    busy_until_s = dict.fromkeys(fleet.candidates, 0.0)
    now_s = 0.0

    def grant(run: Waiting, placement: Placement) -> None:
        assert placement.node_id is not None
        assert placement.terms is not None
        line.serve(run)
        begins_s = max(now_s, busy_until_s[placement.node_id])
        busy_until_s[placement.node_id] = ends_s = begins_s + placement.terms.load_s + placement.terms.own_s
        heapq.heappush(ends, (ends_s, id(run), placement.node_id))
        done[id(run)] = ends_s
        fleet.put(with_run(run.ask, fleet.candidates[placement.node_id], now_s=now_s))

    while len(line) or ends:
        bind(line, fleet, now_s, grant=grant)
        now_s, _, node_id = heapq.heappop(ends)
        held = [end_s for end_s, _, at in ends if at == node_id]
        changed = fleet.candidates[node_id]
        free_at_s = max([now_s, *held])
        fleet.put(Candidate(node_id, node_id, changed.offers, 2, len(held), free_at_s, 0.0, changed.resident))
    return [done[id(run)] for run in runs]


@pytest.mark.parametrize("paces", [(1.0,), (1.0, 0.5, 0.25), (1.0, 1.0, 3.0)])
@pytest.mark.parametrize("units", [(4.0,) * 12, (1.0, 2.0, 8.0, 1.0, 4.0, 4.0, 2.0, 1.0, 8.0, 2.0)])
def test_what_is_foreseen_is_what_happens(paces: tuple[float, ...], units: tuple[float, ...]):
    runs = [run_of(each) for each in units]
    line: Line[Waiting] = Line()
    for run in runs:
        line.add(run)

    order = list(line)
    foreseen = {id(run): each.finish_s for run, each in zip(order, Forecast().play(order, fleet_of(*paces), 0.0), strict=True)}
    happened = carried_out(runs, fleet_of(*paces))

    for run, done_s in zip(runs, happened, strict=True):
        assert foreseen[id(run)] == pytest.approx(done_s, rel=0.1)


def test_a_load_is_foreseen_once_and_positions_count_from_one():
    foreseen = Forecast().play([run_of(2.0), run_of(2.0)], fleet_of(1.0, load_s=30.0, resident=False), 0.0)

    assert [(each.position, each.finish_s, each.own_s) for each in foreseen] == [(1, 32.0, 32.0), (2, 34.0, 2.0)]


def test_who_joins_is_behind_those_that_were_there_and_those_that_joined_before():
    fleet, forecast = fleet_of(1.0), Forecast()
    forecast.play([run_of(5.0)], fleet, 0.0)

    asked = forecast.join(2, run_of(1.0).ask, fleet, 0.0, keep=False)
    first = forecast.join(2, run_of(1.0).ask, fleet, 0.0, keep=True)
    second = forecast.join(3, run_of(1.0).ask, fleet, 0.0, keep=True)

    assert [asked.finish_s, first.finish_s, second.finish_s] == [6.0, 6.0, 7.0]
    assert fleet.candidates["n0"].held == 0


def test_a_long_line_is_foreseen_by_the_mean_from_where_looks_would_cost_too_much():
    fleet = fleet_of(*(1.0 for _ in range(64)))

    foreseen = Forecast().play([run_of(1.0) for _ in range(640)], fleet, 0.0)

    assert MOST_LOOKS < 64 * 640
    assert foreseen[-1].position == 640
    assert foreseen[-1].finish_s == pytest.approx(10.0, rel=0.25)


def test_what_no_node_can_take_is_not_foreseen():
    assert Forecast().play([Waiting(Ask("other", "generation", 1.0), 0.0, 1.0)], fleet_of(1.0), 0.0)[0].finish_s is None


def test_what_rests_on_a_guess_is_told_as_one_and_so_is_all_that_is_behind_it():
    fleet = fleet_of(1.0)
    guessed = Offer(frozenset({"generation"}), 1.0, 0.0, guessed=True)
    fleet.put(replace(fleet.candidates["n0"], offers={MODEL: Offer(frozenset({"generation"}), 1.0, 0.0), "new": guessed}))
    order = [run_of(1.0), Waiting(Ask("new", "generation", 1.0), 0.0, 1.0), run_of(1.0)]
    forecast = Forecast()

    told = [each.sure for each in forecast.play(order, fleet, 0.0)]

    assert told == [True, False, False]
    assert not forecast.join(4, run_of(1.0).ask, fleet, 0.0, keep=False).sure
