"""A node as numbers: one run at a time, first come first served, the least recently used models leave."""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from router.placement import SHARE_OF_RUNNING, Ask, Candidate, Offer, residents_after
from router.simulator.workload import Arrival, SimModel

TASK = "generation"


@dataclass(slots=True, eq=False)
class Job:
    """One run at a node. estimate_s: what the node takes it to need there, its load included."""

    arrival: Arrival
    ask: Ask
    estimate_s: float = 0.0
    began_s: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What a node tells: what it holds, in order, and what is on its device."""

    jobs: tuple[Job, ...]
    resident: tuple[str, ...]


class SimNode:
    """See the module. speed: work seconds it does in a second."""

    def __init__(self, node_id: str, speed: float, models: Sequence[SimModel], *, fits: int, places: int, warm: bool) -> None:
        self.id = node_id
        self.speed = speed
        self.jobs: deque[Job] = deque()
        self.units = 0.0
        """Of all it holds: what policies by declared cost count."""
        self.loads = 0
        self.load_s = 0.0
        # An ask's units are seconds on speed 1 here: estimates, and every kind of work, are in them already.
        offers = {model.name: Offer(frozenset({TASK}), 1 / speed, model.load_s) for model in models}
        resident = tuple(model.name for model in models[:fits]) if warm else ()
        self.idle = Candidate(node_id, node_id, offers, places, resident=resident, max_resident=fits)
        """This node with nothing to do, with what is truly on its device."""
        self.planned = resident
        """The same once all it holds has run."""

    def take(self, arrival: Arrival, ask: Ask, now_s: float) -> float | None:
        """One more run; when it ends, if it begins at once."""
        job = Job(arrival, ask)
        offer = self.idle.offers[ask.model]
        job.estimate_s = offer.own_s(ask) + (0.0 if ask.model in self.planned else offer.load_s)
        self.planned = residents_after([ask.model], replace(self.idle, resident=self.planned))
        self.jobs.append(job)
        self.units += arrival.units
        return self._begin(now_s) if len(self.jobs) == 1 else None

    def end(self, now_s: float) -> tuple[Job, float | None]:
        """The running one is done; with it, when the next will be."""
        job = self.jobs.popleft()
        self.units = self.units - job.arrival.units if self.jobs else 0.0
        return job, self._begin(now_s) if self.jobs else None

    def _begin(self, now_s: float) -> float:
        job = self.jobs[0]
        job.began_s = now_s
        load_s = 0.0
        if job.ask.model not in self.idle.resident:
            load_s = self.idle.offers[job.ask.model].load_s
            self.loads += 1
            self.load_s += load_s
        self.idle = replace(self.idle, resident=residents_after([job.ask.model], self.idle))
        return now_s + load_s + job.arrival.work_s / self.speed

    def report(self) -> Report:
        """What it tells routers now."""
        return Report(tuple(replace(job) for job in self.jobs), self.idle.resident)


def seen(idle: Candidate, resident: tuple[str, ...], jobs: Iterable[Job], now_s: float) -> Candidate:
    """A node as a router sees it. resident: on its device, of what runs included; jobs: running first."""
    free_at_s, floor_s, held, waiting = now_s, 0.0, 0, []
    for job in jobs:
        if held == 0 and job.began_s is not None:
            free_at_s = job.began_s
            floor_s = SHARE_OF_RUNNING * job.estimate_s
        else:
            floor_s += job.estimate_s
            waiting.append(job.ask.model)
        free_at_s += job.estimate_s
        held += 1
    after = residents_after(waiting, replace(idle, resident=resident))
    return replace(idle, held=held, free_at_s=free_at_s, floor_s=floor_s, resident=after)
