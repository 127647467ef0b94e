"""What it is worth to come between the steps of others: the same late request joining and waiting, in turns."""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from node.benches.bare import Work
from node.benches.figures import quartiles
from node.benches.process import RunningNode

COMES_AT = 0.25
"""Share of the first one's steps that are made when the late one comes."""
LOOK_EVERY_S = 0.005


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two requests, the second of which came late. In seconds."""

    first_s: float
    late_s: float
    """From its own beginning."""
    both_s: float
    joined: bool


def late_joiner(node: RunningNode, model: str, work: Work, *, count: int) -> dict[str, Any]:
    """How soon a request is answered that comes when another has made a quarter of its steps: where it may join, and where it
    has to wait because it is to be exact. What pays must be measured before.

    `late_latency_ratio` and `late_first_latency_ratio` (of the one that came first): joining / waiting, below 1 is sooner.
    `late_throughput_ratio`: how much sooner both are done, above 1 is sooner.
    """
    joining, waiting = [], []
    for seed in range(count):
        waiting.append(_pair(node, model, work, seed, exact=True))
        joining.append(_pair(node, model, work, seed, exact=False))
    turns = list(zip(joining, waiting, strict=True))
    late = [mine.late_s / its.late_s for mine, its in turns]
    return {
        "late_s": round(statistics.median(each.late_s for each in joining), 4),
        "late_s_waiting": round(statistics.median(each.late_s for each in waiting), 4),
        "late_latency_ratio": round(statistics.median(late), 4),
        "late_latency_ratio_quartiles": quartiles(late),
        "late_first_latency_ratio": round(statistics.median(mine.first_s / its.first_s for mine, its in turns), 4),
        "late_throughput_ratio": round(statistics.median(its.both_s / mine.both_s for mine, its in turns), 4),
        "late_joined": f"{sum(each.joined for each in joining)} of {count}",
    }


def _pair(node: RunningNode, model: str, work: Work, seed: int, *, exact: bool) -> _Pair:
    """exact: of the late one; the first may be joined in any case."""

    def answered(seed: int, exact: bool) -> tuple[float, dict[str, Any]]:
        answer = node.ask(work.body(model, seed, exact=exact))
        return time.perf_counter(), answer

    with ThreadPoolExecutor(1) as pool:
        first_at = time.perf_counter()
        first = pool.submit(answered, seed, False)
        while not first.done() and not any(job.step >= COMES_AT * job.steps for job in node.status().jobs):
            time.sleep(LOOK_EVERY_S)
        late_at = time.perf_counter()
        late_end, late = answered(seed + 1, exact)
        first_end, _ = first.result()
    joined = late["parameters"]["batch"] > 1
    return _Pair(first_end - first_at, late_end - late_at, max(first_end, late_end) - first_at, joined)
