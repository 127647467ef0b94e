"""What placement and order are worth, on simulated fleets: the goals that a change of policy is held to."""

import json
import statistics
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from router.simulator.cases import CASES, EVICTING, FIRST, FOURS, SPLIT, WARM
from router.simulator.cli import placement
from router.simulator.policies import POLICIES
from router.simulator.run import OURS, Figures, simulate
from router.simulator.workload import SIX

SEEDS = (0, 1, 2)


@cache
def ours(**changes: object) -> list[Figures]:
    return [simulate(replace(FIRST, **changes), OURS, seed) for seed in SEEDS]  # type: ignore[arg-type]


def test_with_more_models_than_fit_little_time_goes_into_loading():
    runs = ours()

    assert statistics.median(run.mean_s for run in runs) <= 16
    assert statistics.median(run.load_share for run in runs) <= 0.06
    assert not any(run.grows for run in runs)


def test_estimates_off_by_a_factor_of_two_cost_little():
    assert statistics.median(run.mean_s for run in ours(estimate_sigma=0.7)) <= 20


def test_policies_that_know_no_loads_never_catch_up():
    assert simulate(replace(FIRST, count=3000), "least request", 0).grows


def test_pictures_of_one_request_are_done_sooner_by_several_nodes():
    alone, split = (simulate(case, OURS, 0) for case in (FOURS, SPLIT))

    assert split.mean_s <= 0.5 * alone.mean_s
    assert split.p99_s <= alone.p99_s


def test_splitting_does_no_harm_where_the_fleet_is_busy():
    alone, split = (simulate(replace(WARM, splits=splits, count=1500), OURS, 0) for splits in (False, True))

    assert split.mean_s <= 1.02 * alone.mean_s


def test_short_runs_are_not_held_up_by_long_ones():
    equal = replace(WARM, speeds=(1.0,) * 12)

    slowdowns = {policy: simulate(equal, policy, 0).slowdown_p99 for policy in (OURS, "least request")}

    assert slowdowns[OURS] <= slowdowns["least request"] / 3


@pytest.mark.parametrize("policy", [OURS, *POLICIES])
def test_every_run_ends_under_every_policy(policy: str):
    case = replace(FIRST, count=300, speeds=(1.0, 0.5))
    arrivals = case.arrivals(7)

    first, again = (simulate(case, policy, 7, arrivals) for _ in range(2))

    assert first == again
    assert all(arrival.done_s == -1 for arrival in arrivals)
    assert first.mean_s >= statistics.fmean(arrival.work_s for arrival in arrivals[30:])


def test_three_routers_that_are_told_of_changes_are_nearly_as_good_as_one():
    one, three = ours(), ours(routers=3, told_after_s=0.01)

    assert statistics.fmean(run.mean_s for run in three) <= 1.1 * statistics.fmean(run.mean_s for run in one)
    assert all(0 < run.busy_share < 0.1 for run in three)


def test_routers_that_hear_late_are_turned_away_and_lose_little():
    one, late = ours(), ours(routers=3, told_after_s=0.5)

    assert statistics.fmean(run.mean_s for run in late) <= 1.1 * statistics.fmean(run.mean_s for run in one)
    assert all(0 < run.busy_share < 0.2 for run in late)


@pytest.mark.parametrize("others", [10, 50, 90])
def test_runs_are_done_when_it_was_foreseen_where_models_throw_one_another_out(others: int):
    usual, other = EVICTING.models
    models = (replace(usual, popularity=100 - others), replace(other, popularity=others))

    runs = [simulate(replace(EVICTING, models=models), OURS, seed) for seed in SEEDS]

    assert all(run.load_share > 0 for run in runs)
    assert all(run.foreseen_share is not None and run.foreseen_share >= 0.9 for run in runs)


def test_what_is_foreseen_of_all_others_is_not_looked_at():
    assert simulate(replace(EVICTING, count=100), "least request", 0).foreseen_share is None


def command(*arguments: str) -> str:
    app = typer.Typer()
    app.command()(placement)
    told = CliRunner().invoke(app, list(arguments))
    assert told.exit_code == 0, told.output
    return told.output


def test_the_command_tells_the_first_cases_figures_to_programs():
    told = json.loads(command("--json", "--seeds", "1", "--count", "200", "--ours-only"))

    assert [each["case"] for each in told["cases"]] == [case.name for case in CASES]
    assert told["mean_s"] == told["cases"][0]["policies"][OURS]["mean_s"]["median"]
    assert 0 <= told["load_share"] < 1


def test_a_trace_is_replayed(tmp_path: Path):
    trace = tmp_path / "trace.jsonl"
    lines = [{"at_s": i, "model": SIX[i % 3].name, "work_s": 2, "load_s": 10, "key": f"k{i % 2}"} for i in range(60)]
    trace.write_text("\n".join(map(json.dumps, lines)))

    told = json.loads(command("--json", "--seeds", "1", "--trace", str(trace), "--nodes", "4"))

    assert told["cases"][0]["case"] == "trace.jsonl"
    assert set(told["cases"][0]["policies"]) == {OURS, *POLICIES}
