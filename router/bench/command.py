"""The command: starts everything, measures in turns, prints two tables."""

import asyncio
import dataclasses
import json
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from common.commands.output import JsonOption, show

if TYPE_CHECKING:
    from router.bench.load import Cell
    from router.bench.targets import Target

COST_COLUMNS = {
    "load": "load",
    "target": "target",
    "CPU ms a request": "cpu_ms",
    "÷ nginx": "cpu_to_nginx",
    "added p50 ms": "added_p50_ms",
    "added p99 ms": "added_p99_ms",
    "requests/s": "per_s",
    "peak MB": "peak_mb",
    "bad": "bad",
}
BEHAVIOUR_COLUMNS = {
    "target": "target",
    "worst event delay ms": "event_delay_ms",
    "node told of gone client ms": "told_after_ms",
    "reset: asked": "asks_on_reset",
    "started": "starts_on_reset",
    "503: asked": "asks_on_503",
    "begun": "starts_on_503",
    "64 stalled readers of 6 MB, MB": "stalled_readers_mb",
}


def router(
    rounds: Annotated[int, typer.Option(min=1, max=50, help="Rounds; each visits every target.")] = 5,
    cells: Annotated[str | None, typer.Option(help="Only loads whose name contains one of these, by commas.")] = None,
    share: Annotated[float, typer.Option(min=0.01, max=10, help="Share of each load's requests that is sent.")] = 1.0,
    litellm: Annotated[
        str | None,
        typer.Option(
            envvar="AQUATINT_BENCH_LITELLM", help="LiteLLM's command, of an environment of its own; else what PATH has."
        ),
    ] = None,
    alone: Annotated[bool, typer.Option("--alone", help="Leave out nginx and LiteLLM.")] = False,
    behaviour: Annotated[bool, typer.Option(help="Measure what happens when things go wrong.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Measure the router beside nginx and LiteLLM, where they are installed, before stub nodes on this machine."""
    from router.bench.load import CELLS
    from router.bench.targets import NotReady

    if not Path("/proc/self/schedstat").exists():
        raise typer.BadParameter("CPU time is read from Linux's /proc")
    cells_of_share = [dataclasses.replace(cell, count=max(1, round(cell.count * share))) for cell in CELLS]
    chosen = [cell for cell in cells_of_share if cells is None or any(part.strip() in cell.name for part in cells.split(","))]
    if not chosen:
        raise typer.BadParameter(
            f"no load is named so; there are {', '.join(cell.name for cell in CELLS)}", param_hint="--cells"
        )
    try:
        told = measure(rounds, chosen, litellm or "litellm", peers=not alone, behaviour=behaviour)
    except NotReady as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None
    if as_json:
        typer.echo(json.dumps(told, ensure_ascii=False, indent=2))
        return
    typer.echo(f"Medians of {rounds} rounds. {told['setup']}\n")
    show(told["costs"], COST_COLUMNS, as_json=False, empty="")
    if told["behaviour"]:
        typer.echo("")
        show(told["behaviour"], BEHAVIOUR_COLUMNS, as_json=False, empty="")


def measure(rounds: int, cells: "Sequence[Cell]", litellm: str, *, peers: bool, behaviour: bool) -> dict[str, Any]:
    """All figures: `costs` a row for each load and target, `behaviour` a row for each target, `setup` in words."""
    import uvloop

    from common.catalog import migrate, sqlite_url
    from common.ports import hold_port
    from router.bench import targets
    from router.bench.behaviour import behave
    from router.bench.processes import cores

    measured, beside = cores()
    with tempfile.TemporaryDirectory(prefix="aquatint-bench-") as folder, ExitStack() as stack:
        work = Path(folder)
        # nginx' worker, which is another user when root starts it, writes its temporary files here.
        work.chmod(0o755)
        (work / "aquatint").mkdir()
        database_url = sqlite_url(work / "aquatint" / "catalog.db")
        asyncio.run(migrate(database_url))
        nodes = [hold_port(), hold_port()]
        stack.enter_context(targets.stub_nodes(work, nodes, core=beside, database_url=database_url))
        found = [stack.enter_context(targets.aquatint(work, nodes, core=measured))]
        missing = []
        if peers and targets.installed("nginx"):
            found += stack.enter_context(targets.nginx(work, nodes, core=measured))
        elif peers:
            missing.append("nginx")
        if peers and (program := targets.installed(litellm)) is not None:
            found.append(stack.enter_context(targets.litellm(work, nodes, program, core=measured)))
        elif peers:
            missing.append("LiteLLM")
        mine = os.sched_getaffinity(0)
        if beside is not None:
            os.sched_setaffinity(0, {beside})
        try:
            costs = uvloop.run(_costs(rounds, cells, found, targets.Target("direct", nodes[0], None)))
            told = [uvloop.run(behave(target, nodes, trials=5)) for target in found] if behaviour else []
        finally:
            os.sched_setaffinity(0, mine)
    return {"setup": _setup(measured, beside, missing), "costs": costs, "behaviour": told}


def _setup(measured: int | None, beside: int | None, missing: Sequence[str]) -> str:
    from common.catalog.behind import WITHIN_S

    words = (
        "This machine has one core for everything."
        if beside is None
        else f"What is measured runs on core {measured}, nodes and load on core {beside}."
    )
    words += (
        f" The catalog is SQLite; each run is committed within {1000 * WITHIN_S:g} ms of being sent, and flushed to disk with"
        " its result by its node, which stub nodes do not write."
    )
    return words + "".join(f" {name} is not installed, so it is left out." for name in missing)


async def _costs(rounds: int, cells: "Sequence[Cell]", found: "Sequence[Target]", direct: "Target") -> list[dict[str, Any]]:
    """A row for each load and target."""
    from router.bench.load import drive, picture, request
    from router.bench.processes import CpuClock, forget_peak, memory_bytes
    from router.bench.targets import KEY

    turns: dict[tuple[str, str], list[dict[str, float]]] = {}
    for number in range(rounds):
        for cell in cells:
            whole = request(cell.model, KEY, upload=picture(cell.upload_bytes) if cell.upload_bytes else b"")
            order = random.sample([direct, *found], len(found) + 1)
            for target in order:
                if number == 0:  # The first requests open connections and warm caches.
                    await drive(target.port, whole, cell, count=max(8, cell.connections // target.slowness))
                count = max(cell.count // target.slowness, min(cell.connections, 32), 20)
                if target.pid is not None:
                    forget_peak(target.pid)
                clock = CpuClock(target.pid) if target.pid is not None else None
                load = await drive(target.port, whole, cell, count=count)
                turn = {"bad": float(load.bad), "per_s": len(load.seconds) / load.wall_s}
                turn |= {"p50_ms": 1000 * _at(load.seconds, 0.5), "p99_ms": 1000 * _at(load.seconds, 0.99)}
                if clock is not None and target.pid is not None:
                    turn["cpu_ms"] = 1000 * clock.seconds() / count
                    turn["peak_mb"] = memory_bytes(target.pid, peak=True) / 1e6
                turns.setdefault((cell.name, target.name), []).append(turn)
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return [_row(cell.name, target.name, turns) for cell in cells for target in found]


def _row(cell: str, target: str, turns: dict[tuple[str, str], list[dict[str, float]]]) -> dict[str, Any]:
    mine, direct = turns[cell, target], turns[cell, "direct"]
    nginx = turns.get((cell, "nginx"))

    def median(name: str, digits: int) -> float:
        return round(statistics.median(turn[name] for turn in mine), digits)

    def added(name: str) -> list[float]:
        return [a[name] - b[name] for a, b in zip(mine, direct, strict=True)]

    p50_ms = added("p50_ms")
    ratios = [a["cpu_ms"] / b["cpu_ms"] for a, b in zip(mine, nginx, strict=True)] if nginx else []
    return {
        "load": cell,
        "target": target,
        "cpu_ms": median("cpu_ms", 3),
        "cpu_to_nginx": round(statistics.median(ratios), 2) if ratios else None,
        "cpu_to_nginx_range": [round(min(ratios), 2), round(max(ratios), 2)] if ratios else None,
        "added_p50_ms": round(statistics.median(p50_ms), 2),
        "added_p50_range_ms": [round(min(p50_ms), 2), round(max(p50_ms), 2)],
        "added_p99_ms": round(statistics.median(added("p99_ms")), 2),
        "per_s": median("per_s", 1),
        "peak_mb": median("peak_mb", 1),
        "bad": int(sum(turn["bad"] for turn in mine)),
    }


def _at(seconds: Sequence[float], share: float) -> float:
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")
