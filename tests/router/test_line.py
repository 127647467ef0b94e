"""The order of those that wait: fair between keys, short work first, and nobody for ever."""

import math
import time
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from router.line import MAX_PATIENCE_S, MIN_REMEMBERED, ROUND_S, WEIGHTS, Line, Waiting
from router.placement import Ask
from router.wishes import Priority


def waiting(work_s: float, *, at_s: float = 0, key: str = "a", priority: Priority = Priority.NORMAL) -> Waiting:
    return Waiting(Ask("m", "generation", work_s), at_s, work_s, key, priority)


def served(line: Line[Waiting]) -> list[Waiting]:
    order = []
    while len(line):
        [first] = line.front(1)
        line.serve(first)
        order.append(first)
    return order


def line_of(*runs: Waiting) -> Line[Waiting]:
    line: Line[Waiting] = Line()
    for run in runs:
        line.add(run)
    return line


def test_runs_of_one_key_that_are_alike_are_first_come_first_served():
    runs = [waiting(2, at_s=i) for i in range(50)]

    assert served(line_of(*runs)) == runs


def asking(*, at_s: float, work_s: float, units: float, tried: frozenset[str] = frozenset()) -> Waiting:
    """work_s: what is predicted of it when it comes."""
    return Waiting(Ask("m", "generation", units, tried=tried), at_s, work_s, "a")


ASKED = st.lists(st.tuples(st.integers(0, 20), st.sampled_from([0.1, 5, 1000]), st.sampled_from([1.0, 2.0])), max_size=30)
"""Of each in the order in which they get here: when it arrived, what is predicted of it then, what it asks for."""


@given(ASKED)
def test_those_that_ask_for_the_same_stay_in_the_order_of_their_arrival_whatever_is_learned_of_their_work(
    asked: list[tuple[int, float, float]],
):
    runs = [asking(at_s=at_s, work_s=work_s, units=units) for at_s, work_s, units in asked]

    order = served(line_of(*runs))

    for units in (1.0, 2.0):
        same = [run for run in runs if run.ask.units == units]
        assert [run for run in order if run.ask.units == units] == sorted(same, key=lambda run: run.arrived_s)


def test_a_run_that_was_tried_elsewhere_comes_back_before_those_that_ask_for_the_same():
    later = [asking(at_s=second, work_s=1, units=1.0) for second in (1, 2)]
    again = asking(at_s=0, work_s=100, units=1.0, tried=frozenset({"node"}))

    assert served(line_of(*later, again)) == [again, *later]


def test_a_short_run_overtakes_a_long_one_that_came_a_little_earlier():
    long, short = waiting(20), waiting(1, at_s=5)

    assert served(line_of(long, short)) == [short, long]


def test_no_run_is_overtaken_for_ever():
    endless = waiting(10_000)
    line = line_of(endless, *(waiting(0.1, at_s=second) for second in range(1000)))

    assert served(line).index(endless) <= MAX_PATIENCE_S + 1


def test_a_key_that_offers_a_hundred_times_as_much_gets_no_more_than_the_others():
    greedy = [waiting(1, key="greedy") for _ in range(4000)]
    modest = [waiting(1, key=key) for key in "bcde" for _ in range(40)]

    first = served(line_of(*greedy, *modest))[: 5 * 40]

    given_s = Counter[str]()
    for run in first:
        given_s[str(run.key)] += run.work_s
    shares = list(given_s.values())
    assert sum(shares) ** 2 / (5 * sum(share**2 for share in shares)) >= 0.95


def test_a_key_that_was_idle_does_not_save_up():
    line = line_of(*(waiting(1, key="busy") for _ in range(200)))
    for run in line.front(100):
        line.serve(run)
    for _ in range(100):
        line.add(waiting(1, at_s=1, key="back"))

    assert Counter(run.key for run in served(line)[:80])["back"] <= 50


def test_a_key_pays_for_what_its_runs_really_took():
    line = line_of(waiting(1, key="slow"), waiting(1, key="quick"))
    for run in line.front(2):
        line.serve(run)
        line.correct(run, 100 if run.key == "slow" else 1)
    for key in ("slow", "quick"):
        for _ in range(5):
            line.add(waiting(1, key=key))

    assert [run.key for run in line][:5] == ["quick"] * 5


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 30), st.booleans()), max_size=40))
def test_whoever_joins_is_served_once_or_has_left(steps: list[tuple[str, int, bool]]):
    line: Line[Waiting] = Line()
    joined, gone = [], []
    for number, (key, work_s, leaves) in enumerate(steps):
        run = waiting(work_s, at_s=number, key=key)
        line.add(run)
        joined.append(run)
        if leaves:
            line.leave(run)
            gone.append(run)
    order = list(line)

    assert {id(run) for run in order} == {id(run) for run in joined} - {id(run) for run in gone}
    assert len(served(line)) == len(order)
    assert line.work_s == 0


def test_a_key_that_waits_for_more_pays_at_once_for_what_its_runs_really_took():
    line = line_of(waiting(1, key="slow"), waiting(1, key="quick"))
    taken = line.front(2)
    for run in taken:
        line.serve(run)
    for key in ("slow", "quick"):
        for _ in range(5):
            line.add(waiting(1, key=key))
    for run in taken:
        line.correct(run, 100 if run.key == "slow" else 1)

    assert [run.key for run in line][:5] == ["quick"] * 5


def test_the_first_is_found_as_quickly_however_many_keys_wait():
    few, many = (line_of(*(waiting(1, key=f"key {number}") for number in range(keys))) for keys in (10, 20_000))
    best_s = {few: math.inf, many: math.inf}
    for _ in range(20):
        for line in best_s:
            began_s = time.perf_counter()
            line.front(1)
            best_s[line] = min(best_s[line], time.perf_counter() - began_s)

    # Asking all keys takes a thousand times as long.
    assert best_s[many] <= 20 * best_s[few]


def test_what_is_urgent_goes_before_all_that_is_less_so_whenever_it_comes():
    line = line_of(*(waiting(1, priority=priority) for priority in (Priority.LOW, Priority.NORMAL) for _ in range(20)))
    urgent = waiting(30, at_s=100, priority=Priority.HIGH)
    line.add(urgent)

    order = served(line)

    assert order[0] is urgent
    assert [run.priority for run in order[1:21]] == [Priority.NORMAL] * 20


SHARES = st.sampled_from([0.5, 1.0, 3.0, 8.0])


@given(high=SHARES, normal=SHARES, low=SHARES)
def test_priorities_that_wait_all_the_time_share_the_devices_and_none_starves(high: float, normal: float, low: float):
    work_s = dict(zip(Priority, (high, normal, low), strict=True))
    line = line_of(*(waiting(each_s, priority=priority) for priority, each_s in work_s.items() for _ in range(3)))
    given_s, others_s, longest_s = Counter[Priority](), 0.0, 0.0
    while sum(given_s.values()) < 4 * ROUND_S * sum(WEIGHTS.values()):
        [first] = line.front(1)
        line.serve(first)
        line.add(waiting(first.work_s, priority=first.priority))
        given_s[first.priority] += first.work_s
        others_s = 0.0 if first.priority is Priority.LOW else others_s + first.work_s
        longest_s = max(longest_s, others_s)

    # Between two runs of the lowest there is one round of each of the others, and a run by which either overshoots.
    assert longest_s <= ROUND_S * (WEIGHTS[Priority.HIGH] + WEIGHTS[Priority.NORMAL]) + high + normal
    shares = {priority: seconds / WEIGHTS[priority] for priority, seconds in given_s.items()}
    assert max(shares.values()) - min(shares.values()) <= ROUND_S + max(work_s.values())


@given(st.lists(st.tuples(st.sampled_from(list(Priority)), st.sampled_from("ab"), st.integers(0, 30)), max_size=30))
def test_the_order_that_is_told_is_the_order_of_serving(runs: list[tuple[Priority, str, int]]):
    line = line_of(*(waiting(work_s, at_s=i, key=key, priority=p) for i, (p, key, work_s) in enumerate(runs)))
    told = list(line)

    assert served(line) == told


def test_a_priority_that_nobody_asked_for_saves_nothing_up():
    line = line_of(*(waiting(10, priority=Priority.LOW) for _ in range(100)))
    for run in line.front(90):
        line.serve(run)
    for _ in range(100):
        line.add(waiting(10, priority=Priority.NORMAL))

    assert Priority.LOW in {run.priority for run in served(line)[:10]}


PASSES = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.sampled_from(list(Priority)),
        st.sampled_from([0.0, 1.0, 7.0, 40.0]),
        st.none() | st.sampled_from([0.0, 5.0, 100.0]),
        st.booleans(),
    ),
    max_size=40,
)
"""Key, priority and work of each; what it took in the end, if that is told; whether another waits with it."""


@given(PASSES)
def test_one_that_passes_while_nobody_waits_is_charged_as_if_it_had_waited(
    steps: list[tuple[str, Priority, float, float | None, bool]],
):
    short, long = Line[Waiting](), Line[Waiting]()
    for key, priority, work_s, took_s, together in steps:
        for line in (short, long):
            runs = [waiting(work_s, key=key, priority=priority)]
            if together:
                runs.append(waiting(3, key="d"))
            if line is short and not together:
                line.pass_through(runs[0])
            else:
                for run in runs:
                    line.add(run)
                served(line)
            if took_s is not None:
                line.correct(runs[0], took_s)
    later = [(key, priority) for key in "abcd" for priority in Priority for _ in range(3)]
    orders = []
    for line in (short, long):
        runs = [waiting(4, at_s=number, key=key, priority=priority) for number, (key, priority) in enumerate(later)]
        for run in runs:
            line.add(run)
        orders.append([runs.index(run) for run in served(line)])

    assert orders[0] == orders[1]
    assert len(short) == len(long) == 0


def test_keys_that_only_ever_pass_are_not_remembered_for_ever():
    line = Line[Waiting]()
    for number in range(5 * MIN_REMEMBERED):
        line.pass_through(waiting(1, key=f"key {number}"))
        line.pass_through(waiting(2, key="busy"))

    assert len(line._lanes[Priority.NORMAL]._accounts) <= 2 * MIN_REMEMBERED + 2
