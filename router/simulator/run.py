"""One simulated run: events in the order of their times, on a clock that jumps from one to the next."""

import heapq
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from random import Random
from typing import Any

from router.placement import Ask
from router.simulator.nodes import TASK, SimNode
from router.simulator.policies import POLICIES
from router.simulator.routers import SimRouter
from router.simulator.workload import COUNTS, SIX, Arrival, Counts, SimModel, synthetic

OURS = "aquatint"
LEAST_APART_S = 0.02
"""A node says no more often than this how it is: `node.telling`."""
WITHIN = 0.2
"""Of the time it took: how far off what was told may be."""
WARM_UP = 0.1
"""Share of arrivals left out of the figures: the fleet begins empty."""


@dataclass(frozen=True, slots=True)
class Case:
    """A fleet and what comes at it. load: share of the fleet's speed that the work alone takes."""

    name: str
    models: tuple[SimModel, ...] = SIX
    speeds: tuple[float, ...] = (1.0,) * 8 + (0.5,) * 4
    fits: int = 2
    load: float = 0.8
    count: int = 5000
    warm: bool = False
    estimate_sigma: float = 0.25
    burst: float = 0.5
    routers: int = 1
    told_after_s: float | None = None
    """How old a node's word is when a router hears it; None: routers see the fleet as it is."""
    depth: int = 1
    """Runs a node holds beyond the one that runs."""
    counts: Counts = COUNTS
    splits: bool = False
    """Whether the pictures of one request may be made by several nodes."""
    foresees: bool = False
    """Whether each is told when it will be done. It takes as long as all the rest."""

    def arrivals(self, seed: int) -> list[Arrival]:
        """What comes, the same for every policy."""
        return synthetic(
            self.models,
            count=self.count,
            work_per_s=self.load * sum(self.speeds),
            seed=seed,
            estimate_sigma=self.estimate_sigma,
            burst=self.burst,
            routers=self.routers,
            counts=self.counts,
        )


@dataclass(frozen=True, slots=True)
class Figures:
    """What one run came to; seconds. slowdown: time from arrival to end over the work alone."""

    mean_s: float
    p99_s: float
    slowdown_p99: float
    load_share: float
    """Seconds spent loading over seconds of work."""
    busy_share: float
    """Runs sent to a node that had no place for them, over all."""
    foreseen_share: float | None
    """Runs of which the time told when they came was within `WITHIN` of the time it took, over all; None where none was."""
    grows: bool
    """The fleet never catches up: the longer it runs, the longer the wait."""


class _Events:
    """What happens next."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, tuple[Any, ...]]] = []
        self._numbers = count()

    def add(self, at_s: float, *event: Any) -> None:
        heapq.heappush(self._heap, (at_s, next(self._numbers), event))

    def __iter__(self) -> "_Events":
        return self

    def __next__(self) -> tuple[float, tuple[Any, ...]]:
        if not self._heap:
            raise StopIteration
        at_s, _, event = heapq.heappop(self._heap)
        return at_s, event


def simulate(case: Case, policy: str, seed: int, arrivals: Sequence[Arrival] | None = None) -> Figures:
    """One run to its end. policy: `OURS`, or a name in `POLICIES`. arrivals: of a trace; drawn from `seed` when None."""
    arrivals = [replace(each) for each in arrivals] if arrivals is not None else case.arrivals(seed)
    nodes = [
        SimNode(f"n{i:04}", speed, case.models, fits=case.fits, places=1 + case.depth, warm=case.warm)
        for i, speed in enumerate(case.speeds)
    ]
    busy = 0
    if policy == OURS:
        busy = _late_bound(case, arrivals, nodes)
    else:
        _bound_on_arrival(policy, arrivals, nodes, seed)
    return _figures(arrivals, nodes, busy, foresees=case.foresees and policy == OURS)


def _bound_on_arrival(policy: str, arrivals: Sequence[Arrival], nodes: Sequence[SimNode], seed: int) -> None:
    choose = POLICIES[policy](nodes, Random(seed + 99))
    events = _Events()
    for arrival in arrivals:
        events.add(arrival.at_s, arrival)
    for now_s, (what,) in events:
        if isinstance(what, Arrival):
            node, ask = choose(what), Ask(what.model, TASK, what.estimate_s)
            ends_s = node.take(what, ask, now_s)
        else:
            node = what
            job, ends_s = node.end(now_s)
            job.arrival.done(now_s)
        if ends_s is not None:
            events.add(ends_s, node)


def _late_bound(case: Case, arrivals: Sequence[Arrival], nodes: Sequence[SimNode]) -> int:
    """Returns how many runs were turned away by a node."""
    routers = [SimRouter(nodes, number, splits=case.splits) for number in range(case.routers)]
    events, order = _Events(), Random(case.routers)
    for arrival in arrivals:
        events.add(arrival.at_s, "arrival", arrival)
    now_s, busy = 0.0, 0
    says_at_s: dict[str, float] = {}

    def changed(node: SimNode) -> None:
        """As nodes do: said at once, but not twice within a moment."""
        if case.told_after_s is None:
            for router in routers:
                router.told(node, node.report(), now_s)
        elif says_at_s.get(node.id, 0.0) <= now_s:
            says_at_s[node.id] = max(now_s, says_at_s.get(node.id, 0.0) + LEAST_APART_S)
            events.add(says_at_s[node.id], "says", node)

    def send(node: SimNode, arrival: Arrival, ask: Ask) -> bool:
        nonlocal busy
        if len(node.jobs) >= node.idle.places:
            busy += 1
            return False
        ends_s = node.take(arrival, ask, now_s)
        if ends_s is not None:
            events.add(ends_s, "end", node)
        if case.routers > 1:
            changed(node)
        return True

    for now_s, event in events:
        if event[0] == "arrival":
            router = routers[event[1].router]
            router.arrive(event[1], now_s)
            router.pump(now_s, send)
            if case.foresees:
                router.foresee(event[1], now_s)
        elif event[0] == "says":
            # Nobody is always the first to hear.
            for router in order.sample(routers, len(routers)):
                events.add(now_s + (case.told_after_s or 0.0), "told", router, event[1], event[1].report())
        elif event[0] == "told":
            event[1].told(event[2], event[3], now_s)
            event[1].pump(now_s, send)
        else:
            node = event[1]
            job, ends_s = node.end(now_s)
            job.arrival.done(now_s)
            if ends_s is not None:
                events.add(ends_s, "end", node)
            routers[job.arrival.router].answered(node, job.arrival, now_s)
            changed(node)
            for router in routers:
                router.pump(now_s, send)
    return busy


def _figures(arrivals: Sequence[Arrival], nodes: Sequence[SimNode], busy: int, *, foresees: bool) -> Figures:
    counted = arrivals[int(len(arrivals) * WARM_UP) :]
    seconds = [arrival.done_s - arrival.at_s for arrival in counted]
    fifth = max(1, len(seconds) // 5)
    early_s, late_s = statistics.fmean(seconds[fifth : 2 * fifth]), statistics.fmean(seconds[-fifth:])
    return Figures(
        mean_s=statistics.fmean(seconds),
        p99_s=_p99(seconds),
        slowdown_p99=_p99([took / arrival.work_s for took, arrival in zip(seconds, counted, strict=True)]),
        load_share=sum(node.load_s for node in nodes) / sum(arrival.work_s for arrival in arrivals),
        busy_share=busy / len(arrivals),
        foreseen_share=_foreseen_share(counted) if foresees else None,
        grows=late_s > 2 * early_s and late_s > 120,
    )


def _foreseen_share(arrivals: Sequence[Arrival]) -> float:
    took_s = [(each.done_s - each.at_s, each.told_s) for each in arrivals]
    return sum(told_s is not None and abs(told_s - each_s) <= WITHIN * each_s for each_s, told_s in took_s) / len(took_s)


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(0.99 * len(values)))]
