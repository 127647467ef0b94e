"""`aquatint bench placement`: the router's placement and order on simulated fleets, beside how others choose."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.commands.output import JsonOption, show

if TYPE_CHECKING:
    from router.simulator.run import Case, Figures

FIGURES = ("mean_s", "p99_s", "slowdown_p99", "load_share", "busy_share", "foreseen_share")


def placement(
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each, each with arrivals of its own.")] = 3,
    count: Annotated[int | None, typer.Option(min=100, help="Arrivals of a run; each case's own number when absent.")] = None,
    case: Annotated[str | None, typer.Option(help="Only cases with this in their name.")] = None,
    ours_only: Annotated[bool, typer.Option("--ours-only", help="Leave the other policies out.")] = False,
    nodes: Annotated[int | None, typer.Option(min=1, max=1000, help="Instead of the table: this many nodes.")] = None,
    models: Annotated[int, typer.Option(min=1, max=200, help="Models on them.")] = 6,
    load: Annotated[float, typer.Option(min=0.01, max=1.5, help="Share of their speed that the work takes.")] = 0.8,
    trace: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Arrivals as JSON lines.")] = None,
    processes: Annotated[
        bool, typer.Option("--processes", help="Instead of all this: a router before three stub nodes that take their time.")
    ] = False,
    picks: Annotated[
        bool, typer.Option("--picks", help="Instead of all this: the CPU time that it takes to choose a node.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Simulate placement on fleets of made-up nodes, in seconds instead of hours: medians and ranges over the seeds.

    A trace has lines like {"at_s": 0.5, "model": "sdxl", "work_s": 3.2, "load_s": 15, "key": "team-a"}, the work in seconds on
    a node of speed 1. A mean that grows belongs to a fleet that never catches up. Turned away: the share of runs that a router
    sent to a node whose last place another router had taken, and that were placed again at once. As told: the
    share of runs for which the time foreseen when they came was within 20 % of the time it took, where that is looked at.
    """
    from router.simulator.cases import FIRST

    if processes:
        _by_processes(as_json)
        return
    if picks:
        _picks(as_json)
        return
    if trace is not None or nodes is not None:
        chosen: Sequence[Case] = [_fleet(FIRST, nodes or len(FIRST.speeds), models, load)]
    else:
        chosen = _chosen(case)
    told = [_measured(each, seeds, count, ours_only, trace) for each in chosen]
    if as_json:
        first = told[0]["policies"]["aquatint"]
        typer.echo(_json({"mean_s": first["mean_s"]["median"], "load_share": first["load_share"]["median"], "cases": told}))
        return
    rows = [
        {"case": each["case"], "policy": policy, "grows": "yes" if figures["grows"] else ""}
        | {name: _text(figures[name]) for name in FIGURES}
        for each in told
        for policy, figures in each["policies"].items()
    ]
    columns = {"case": "case", "policy": "policy", "mean s": "mean_s", "p99 s": "p99_s"}
    columns |= {
        "p99 slowdown": "slowdown_p99",
        "load / work": "load_share",
        "turned away": "busy_share",
        "as told": "foreseen_share",
        "grows": "grows",
    }
    show(rows, columns, as_json=False, empty="")


def _by_processes(as_json: bool) -> None:
    from router.bench.pacing import measure_processes

    told = measure_processes()
    if as_json:
        typer.echo(_json(told))
        return
    rows = [
        {"phase": phase, "figure": name, "value": value} for phase, figures in told.items() for name, value in figures.items()
    ]
    show(rows, {"phase": "phase", "figure": "figure", "value": "value"}, as_json=False, empty="")


def _picks(as_json: bool) -> None:
    from router.bench.picking import measure_picks

    columns = {"nodes": "nodes", "busy": "busy", "best ms": "best_ms", "median ms": "median_ms", "p95 ms": "p95_ms"}
    show(measure_picks(), columns, as_json=as_json, empty="")


def _chosen(part: str | None) -> "list[Case]":
    from router.simulator.cases import CASES

    chosen = [each for each in CASES if part is None or part in each.name]
    if not chosen:
        names = "; ".join(each.name for each in CASES)
        raise typer.BadParameter(f"no case has {part!r} in its name. There are: {names}.")
    return chosen


def _fleet(first: "Case", nodes: int, models: int, load: float) -> "Case":
    """A fleet as asked for: two thirds of the nodes whole, one third half as fast."""
    from dataclasses import replace

    from router.simulator.workload import many_models

    speeds = tuple(0.5 if i % 3 == 2 else 1.0 for i in range(nodes))
    return replace(first, name=f"{nodes} nodes, {models} models", speeds=speeds, models=many_models(models), load=load)


def _measured(case: "Case", seeds: int, count: int | None, ours_only: bool, trace: Path | None) -> dict[str, Any]:
    from dataclasses import replace

    from router.simulator.policies import POLICIES
    from router.simulator.run import OURS, simulate
    from router.simulator.workload import TraceRefused, read_trace

    case = case if count is None else replace(case, count=count)
    # With several routers the others would need a way to share their counts; they are measured with one.
    policies = [OURS, *([] if ours_only or case.routers > 1 else POLICIES)]
    runs: dict[str, list[Figures]] = {policy: [] for policy in policies}
    for seed in range(seeds):
        arrivals = None
        if trace is not None:
            try:
                models, arrivals = read_trace(trace, seed=seed, estimate_sigma=case.estimate_sigma, routers=case.routers)
            except TraceRefused as refused:
                raise typer.BadParameter(str(refused)) from None
            case = replace(case, name=trace.name, models=models)
        for policy in policies:
            runs[policy].append(simulate(case, policy, seed, arrivals))
    return {"case": case.name, "seeds": seeds, "policies": {policy: _summed(figures) for policy, figures in runs.items()}}


def _summed(figures: "Sequence[Figures]") -> dict[str, Any]:
    told: dict[str, Any] = {}
    for name in FIGURES:
        values = [round(value, 4) for each in figures if (value := getattr(each, name)) is not None]
        told[name] = None if not values else {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return told | {"grows": any(each.grows for each in figures)}


def _text(summed: dict[str, float] | None) -> str:
    return "" if summed is None else f"{summed['median']:.3g} ({summed['min']:.3g}-{summed['max']:.3g})"


def _json(told: dict[str, Any]) -> str:
    import json

    return json.dumps(told, ensure_ascii=False, indent=2)
