"""Nodes that fail are held off, longer each time, and let back by one run; retries are bounded."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from router.circuit import FAILURES, LONGEST_S, SHORTEST_S, Circuit, State
from router.flaps import FREE, Flaps
from router.flaps import LONGEST_S as LONGEST_FLAP_S
from router.retry_budget import FLOOR_PER_S, SHARE, WINDOW_S, RetryBudget
from tests.fakes.node import MODEL, Faults
from tests.router.conftest import MakeHouse, until


def opened(now_s: float = 0.0) -> Circuit:
    circuit = Circuit()
    assert [circuit.failed(f"run {number}", now_s) for number in range(FAILURES)] == [False] * (FAILURES - 1) + [True]
    return circuit


def test_failures_in_a_row_hold_a_model_off_and_a_success_between_them_does_not():
    circuit = Circuit()
    for number in range(10):
        circuit.failed(f"bad {number}", 0)
        circuit.worked(f"good {number}", 0)

    assert circuit.state(0) is State.CLOSED
    assert opened().refuses(0) == "failed 3 times in a row"


def test_after_the_hold_one_run_is_on_trial_and_its_success_closes():
    circuit = opened()
    assert circuit.refuses(SHORTEST_S - 0.1) is not None
    assert circuit.refuses(SHORTEST_S) is None

    circuit.sent("trial", SHORTEST_S)

    assert circuit.refuses(SHORTEST_S) == "failed 3 times in a row, on trial again"
    circuit.worked("trial", SHORTEST_S + 1)
    assert circuit.state(SHORTEST_S + 1) is State.CLOSED


def test_a_trial_that_says_nothing_of_the_node_leaves_it_to_another():
    circuit = opened()
    circuit.sent("trial", SHORTEST_S)

    circuit.ended("trial")

    assert circuit.refuses(SHORTEST_S) is None


def test_what_was_sent_before_it_opened_changes_nothing_any_more():
    circuit = opened()

    circuit.worked("an old one", 1)
    assert not circuit.failed("another", 1)

    assert (circuit.state(1), circuit.until_s) == (State.OPEN, SHORTEST_S)


def test_every_failed_trial_doubles_the_hold_up_to_its_bound_and_long_health_begins_anew():
    circuit, now_s, holds = opened(), 0.0, []
    for number in range(6):
        now_s += circuit.hold_s
        circuit.sent(f"trial {number}", now_s)
        assert circuit.failed(f"trial {number}", now_s)
        holds.append(circuit.hold_s)
    assert holds == [10, 20, 40, LONGEST_S, LONGEST_S, LONGEST_S]

    now_s += LONGEST_S
    circuit.sent("good", now_s)
    circuit.worked("good", now_s)
    for number in range(FAILURES):
        circuit.failed(f"later {number}", now_s + LONGEST_S)

    assert circuit.hold_s == SHORTEST_S


@given(st.lists(st.tuples(st.sampled_from(["send", "fail", "work", "end"]), st.floats(0, 30)), max_size=200))
def test_whatever_happens_at_most_one_run_is_on_trial_and_the_state_changes_once_a_hold(events: list[tuple[str, float]]):
    circuit, now_s, running, number = Circuit(), 0.0, list[str](), 0
    opened_at_s = -LONGEST_S
    for what, pause_s in events:
        now_s += pause_s
        if what == "send":
            if circuit.refuses(now_s) is None:
                number += 1
                running.append(f"run {number}")
                circuit.sent(running[-1], now_s)
                assert circuit.state(now_s) is State.CLOSED or circuit.refuses(now_s) is not None
        elif running:
            run_id = running.pop(0)
            if what == "fail" and circuit.failed(run_id, now_s):
                assert now_s - opened_at_s >= SHORTEST_S or opened_at_s < 0
                opened_at_s = now_s
            elif what == "work":
                circuit.worked(run_id, now_s)
            circuit.ended(run_id)
        assert circuit.trial is None or circuit.trial in running
        assert circuit.hold_s <= LONGEST_S


def test_a_node_that_comes_and_goes_is_held_off_longer_each_time_but_not_the_first():
    flaps, holds, now_s = Flaps(), [], 0.0
    for _ in range(8):
        flaps.lost(now_s)
        holds.append(flaps.back(now_s + 1))
        now_s += 2

    assert holds[:FREE] == [0.0] * FREE
    assert holds[FREE:] == [5, 10, 20, 40, LONGEST_FLAP_S, LONGEST_FLAP_S]
    assert flaps.refuses(now_s) == "comes and goes: lost 8 times of late"
    assert flaps.refuses(now_s + LONGEST_FLAP_S) is None
    assert Flaps().back(0) == 0


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 0.5)), max_size=1500))
def test_retries_are_never_more_than_a_share_of_the_runs_and_the_floor(events: list[tuple[bool, float]]):
    budget, now_s, runs, paid = RetryBudget(), 0.0, 0, list[float]()
    for is_run, pause_s in events:
        now_s += pause_s
        if is_run:
            runs += 1
            budget.earn(now_s)
        elif budget.spend(now_s):
            paid.append(now_s)
        lately = [each for each in paid if now_s - each < WINDOW_S * 0.9]
        assert len(lately) <= SHARE * runs + FLOOR_PER_S * WINDOW_S
    assert budget.left(now_s + 2 * WINDOW_S) == FLOOR_PER_S * WINDOW_S


def test_a_budget_that_is_spent_is_earned_again_by_runs():
    budget = RetryBudget(share=0.2, floor_per_s=0)
    assert not budget.spend(0)
    for _ in range(5):
        budget.earn(0)

    assert [budget.spend(1), budget.spend(1)] == [True, False]


async def test_a_model_that_fails_on_a_node_is_held_off_there_and_told(make_house: MakeHouse):
    house = await make_house("a", "b")
    house.nodes["a"].faults = Faults("error_500", times=100)
    house.nodes["b"].faults = Faults(seconds=0.2)

    replies = await asyncio.gather(*(house.generate() for _ in range(12)))

    assert [reply.status_code for reply in replies] == [200] * 12
    told = (await house.client.get("/admin/nodes/a")).json()
    assert told["held_off"] == {MODEL: "failed 3 times in a row"}
    assert len(house.nodes["a"].started) <= FAILURES + 1
    figures = (await house.client.get("/metrics")).text
    assert 'aquatint_node_held_off{node="a"} 1.0' in figures
    assert 'aquatint_retries_total{outcome="made"}' in figures


async def test_one_run_on_trial_lets_the_model_back(make_house: MakeHouse):
    house = await make_house("a", no_capacity_wait_s=10)
    node = house.services.registry.get("a")
    house.nodes["a"].faults = Faults("error_500", times=FAILURES)
    assert {(await house.generate()).status_code for _ in range(FAILURES)} == {500}
    # The first on trial finds no place there, which says nothing of the node.
    house.nodes["a"].faults = Faults("busy", times=1, seconds=0.3)

    replies = await asyncio.gather(*(house.generate() for _ in range(6)))

    assert [reply.status_code for reply in replies] == [200] * 6
    assert node.circuits[MODEL].state(0) is State.CLOSED


async def test_a_node_that_flaps_is_held_off_only_while_there_is_another(make_house: MakeHouse):
    house = await make_house("a", "b", probe_interval_s=60)
    registry = house.services.registry
    flapping, steady = registry.get("a"), registry.get("b")
    for _ in range(FREE + 1):
        while not flapping.lost.is_set():
            await registry.failed(flapping, "gone")
        # The node itself says that it is there.
        await until(lambda: not flapping.lost.is_set())

    replies = [await house.generate() for _ in range(3)]

    assert [reply.status_code for reply in replies] == [200] * 3
    assert len(house.nodes["a"].started) == 0
    assert "comes and goes" in (await house.client.get("/admin/nodes/a")).json()["held_off"][MODEL]

    while not steady.lost.is_set():
        await registry.failed(steady, "gone")

    assert not flapping.held_off(0)
