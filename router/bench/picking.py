"""`aquatint bench placement --picks`: what it costs to choose a node, in fleets of all sizes.

The fleet's own `place` on nodes as they come to be under load: of different speeds, some of them full, each with a third of
the models on its device. What is asked for differs from pick to pick. Told is the CPU time of a pick, and the fleets are
measured in turns: what else the machine does hits all of them alike, and little.
"""

import statistics
import time
from collections.abc import Sequence
from random import Random
from typing import Any

from router.costs import Cost, Costs, kind_of
from router.fleet import Fleet
from router.placement import Ask, Candidate, Offer

NODES = (10, 100, 1000)
MODELS = 6
RESIDENT = 2
ROUNDS = 300
SIZES = ((512 * 512, -4), (1024 * 1024, 0))
"""(pixels, bucket)"""
NOW_S = 1000.0


def fleet_of(nodes: int, drawn: Random, *, load: float) -> Fleet:
    """load: share of the nodes that have work."""
    fleet = Fleet()
    for number in range(nodes):
        speed = drawn.choice((0.5, 1.0, 2.0))
        measured = {kind_of("generation", bucket): Cost(0.1 / speed, 0.2) for _, bucket in SIZES}
        offer = Offer(frozenset({"generation", "edit"}), 0.1, 20.0, costs=Costs(measured, Cost(0.1)), memory_bytes=7 * 10**9)
        work_s = drawn.expovariate(1 / 3.0) if drawn.random() < load else 0.0
        fleet.put(
            Candidate(
                f"node_{number}",
                f"node {number:04}",
                {_model(each): offer for each in range(MODELS)},
                2,
                held=0 if not work_s else drawn.choice((1, 2)),
                free_at_s=NOW_S + work_s,
                resident=tuple(_model(each) for each in drawn.sample(range(MODELS), RESIDENT)),
                max_resident=RESIDENT,
            )
        )
        fleet.demand.note(_model(number % MODELS), 1.0, NOW_S * number / nodes)
    return fleet


def _model(number: int) -> str:
    return f"model {number}"


def ask_of(drawn: Random) -> Ask:
    """One request."""
    pixels, bucket = drawn.choice(SIZES)
    model = _model(drawn.randrange(MODELS))
    return Ask(model, "generation", pixels / 1e6 * 30, pixels=pixels, kind=kind_of("generation", bucket))


def measure_picks() -> list[dict[str, Any]]:
    """A row for each size of fleet and load; CPU milliseconds a pick."""
    drawn = Random(1)
    loads = {"none": 0.0, "half": 0.5, "all": 1.0}
    fleets = {(nodes, name): fleet_of(nodes, drawn, load=load) for nodes in NODES for name, load in loads.items()}
    took_ms: dict[tuple[int, str], list[float]] = {each: [] for each in fleets}
    for _ in range(ROUNDS):
        for each, fleet in fleets.items():
            ask = ask_of(drawn)
            began_s = time.thread_time()
            fleet.place(ask, NOW_S)
            took_ms[each].append(1000 * (time.thread_time() - began_s))
    return [{"nodes": nodes, "busy": load} | _figures(took_ms[nodes, load]) for nodes, load in fleets]


def _figures(ms: Sequence[float]) -> dict[str, float]:
    ordered = sorted(ms)
    p95 = ordered[len(ordered) * 95 // 100]
    return {"best_ms": round(ordered[0], 3), "median_ms": round(statistics.median(ms), 3), "p95_ms": round(p95, 3)}
