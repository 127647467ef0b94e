"""A node as placement sees it, from what the node last said and what this router has sent it since. Pure."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

from common.node_api import JobStatus, ModelStatus, NodePhase, NodeStatus
from router.costs import Cost, Costs, Kind, Learned, bucket_of, kind_of
from router.placement import SHARE_OF_RUNNING, Ask, Build, Candidate, Health, Offer, resident_with

PRIOR_PACE = {"cuda": 0.1, "mps": 1.0, "cpu": 10.0}
"""Seconds for a megapixel-step before anything was measured: SDXL on a recent GPU, on a laptop's, on a few cores.
Only their order matters: the first picture replaces them."""
PRIOR_LOAD_S = 20.0
NOTHING = Learned()


class Sent(NamedTuple):
    """A run of ours at a node, unanswered. at_s: when it was sent, on the monotonic clock."""

    ask: Ask
    at_s: float
    told: bool = False
    """Whether the node has told of it. If it does so no more, the run has left its device, and is only being stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """All a router knows of one node. said_at_s: when `status` came, on the monotonic clock."""

    node_id: str
    name: str
    health: Health
    status: NodeStatus | None
    said_at_s: float = 0.0
    ours: Mapping[str, Sent]
    """By run id."""
    learned: Mapping[str, Learned] = field(default_factory=dict)
    """By model."""
    likely: Mapping[str, Learned] = field(default_factory=dict)
    """What other nodes tell of models that were not measured here: `likely.likely_costs` of its device."""
    sitting_out: Mapping[str, str]
    """model -> why this node is not given it at present"""
    full: bool = False
    """Whether it has just refused a run for want of a place."""


_TOLD: Callable[[NodeStatus], tuple[object, ...]] = attrgetter(
    "phase",
    "version",
    "device.kind",
    "device.name",
    "seconds_per_unit",
    "load_s",
    "max_concurrency",
    "max_queued",
    "resident",
    "pinned",
    "budget_bytes",
    "max_resident",
)
"""All that `_idle` reads of a status beside its models."""


@dataclass(slots=True)
class Kept:
    """The last candidate without its work. A node takes on and ends many runs between two things it says of itself."""

    idle: Candidate | None = None
    made_of: tuple[object, ...] = ()

    def of(self, known: Known, status: NodeStatus, depth: int) -> Candidate:
        """The same again as long as only what the node does has changed: copies of `status` then keep its list of models."""
        made_of = (
            # Those that may be large are compared by identity.
            *(status.models, known.learned, known.likely),
            *(known.sitting_out, known.health, known.name, *_TOLD(status)),
        )
        same = self.idle is not None and all(one is other for one, other in zip(made_of[:3], self.made_of[:3], strict=True))
        if self.idle is None or not same or made_of[3:] != self.made_of[3:]:
            self.idle, self.made_of = _idle(known, status, depth), made_of
        return self.idle


def candidate_of(known: Known, *, depth: int, kept: Kept | None = None) -> Candidate:
    """The node as placement sees it. depth: runs it may hold beyond those it runs at once. kept: of this node alone."""
    status = known.status
    if status is None:
        return Candidate(known.node_id, known.name, {}, 0, held=len(known.ours), away=str(known.health))
    idle = (kept or Kept()).of(known, status, depth)
    return at_work(idle, status, known.ours, said_at_s=known.said_at_s, full=known.full)


def _idle(known: Known, status: NodeStatus, depth: int) -> Candidate:
    offers = {
        model.id: offer_of(
            model,
            status,
            depth,
            known.sitting_out.get(model.id),
            known.learned.get(model.id, NOTHING),
            known.likely.get(model.id, NOTHING),
        )
        for model in status.models
    }
    return Candidate(
        known.node_id,
        known.name,
        offers,
        max((offer.places for offer in offers.values()), default=0),
        resident=_resident(status),
        pinned=frozenset(status.pinned),
        budget_bytes=status.budget_bytes,
        max_resident=status.max_resident,
        away=_away(known.health, status.phase),
    )


def offer_of(
    model: ModelStatus, status: NodeStatus, depth: int, sitting_out: str | None, learned: Learned, likely: Learned
) -> Offer:
    """One model at a node. sitting_out: why this router gives it no runs on this model.

    depth: as `candidate_of`; so many times the model's batch where it makes batches. learned: here; likely: elsewhere.
    """
    pace, load_s = pace_of(model.id, status), status.load_s.get(model.id) if learned.load_s is None else learned.load_s
    guessed = not learned.costs and model.id not in status.seconds_per_unit
    costs = likely.costs if guessed else learned.costs
    return Offer(
        tasks=frozenset(model.tasks),
        pace=pace,
        load_s=next((each for each in (load_s, likely.load_s) if each is not None), PRIOR_LOAD_S),
        build=build_of(model, status),
        guessed=guessed,
        costs=Costs(costs, Cost(pace)) if costs else {},
        memory_bytes=model.memory_bytes or 0,
        # A node that makes several runs of the model in one pass is given as many, and as many again to wait.
        places=min((status.max_concurrency + depth) * model.batch, model.batch + status.max_queued),
        loras=frozenset(model.loras),
        extras=frozenset(model.extras),
        limits=model.memory_limits,
        unavailable=model.unavailable or sitting_out,
    )


def build_of(model: ModelStatus, status: NodeStatus) -> Build:
    """As `Offer.build`: the program, the kind of device, and which of the model's files it runs, how."""
    told = (status.version, status.device.kind, status.device.name, model.family, model.profile, model.engine, model.format)
    return tuple(map(str, (*told, model.memory_bytes, model.usual_preset)))


def pace_of(model: str, status: NodeStatus) -> float:
    """Measured at the node, else the mean of what it measured for other models, else the prior of its kind of device."""
    measured = status.seconds_per_unit
    if model in measured:
        return measured[model]
    if measured:
        return sum(measured.values()) / len(measured)
    return PRIOR_PACE.get(status.device.kind, PRIOR_PACE["cpu"])


def _away(health: Health, phase: NodePhase) -> str | None:
    if health is not Health.ONLINE:
        return str(health)
    return None if phase is NodePhase.READY else str(phase)


def _resident(status: NodeStatus) -> tuple[str, ...]:
    """In the order in which they would leave, as far as the node tells it: older ones do not."""
    loaded = [model.id for model in status.models if model.resident]
    told = [model for model in status.resident if model in loaded]
    return (*(model for model in loaded if model not in told), *told)


def at_work(idle: Candidate, status: NodeStatus, ours: Mapping[str, Sent], *, said_at_s: float, full: bool) -> Candidate:
    """The node with all it holds: what it told of, less what is done of it, and what it has not told of yet. idle: the same
    without; the others as in `Known`."""
    jobs, expected = status.jobs, status.expected
    if not (jobs or ours or expected or full):
        return idle
    told = set(map(_RUN_ID, jobs))
    work: list[_Work] = [_work_of(job, ours.get(job.run_id)) for job in jobs]
    untold_at_s: list[float] = []
    for run_id, sent in ours.items():
        if not sent.told and run_id not in told:
            ask = sent.ask
            work.append((ask.model, ask.kind, ask.units, ask.pictures, 0.0))
            untold_at_s.append(sent.at_s)
    # Those on their way there are ours, or of other routers that were quicker.
    held = len(work) + max(0, expected - len(untold_at_s))
    if full and held < idle.places:
        held = idle.places
    if not work:
        return idle.doing(held=held, free_at_s=said_at_s, floor_s=0.0, resident=idle.resident) if held else idle
    at_once, resident = status.max_concurrency, idle.resident
    seconds: list[float] = []
    for model, kind, units, pictures, loading_s in work:
        offer = idle.offers.get(model)
        took_s = offer.seconds(kind, units, pictures) if offer is not None else 0.0
        if offer is not None and model not in resident:
            # A load that takes longer than it should is taken to need a share of its time still, as a run that is late.
            took_s += max(offer.load_s - loading_s, SHARE_OF_RUNNING * offer.load_s)
        seconds.append(took_s)
        if not resident or resident[-1] != model:
            resident = resident_with(model, resident, idle)
    began_s = said_at_s if jobs else min(untold_at_s)
    # With a place beside what runs, the next run waits for nothing.
    whole_s = sum(seconds) / at_once if len(work) >= at_once else 0.0
    floor_s = (sum(seconds[at_once:]) + SHARE_OF_RUNNING * sum(seconds[:at_once])) / at_once if whole_s else 0.0
    return idle.doing(held=held, free_at_s=began_s + whole_s, floor_s=floor_s, resident=resident)


def ask_of_job(job: JobStatus) -> Ask:
    """A run of another router, as the node tells it."""
    kind = kind_of(job.work, bucket_of(job.pixels))
    return Ask(job.model, "", job.work_units, pictures=job.pictures, kind=kind)


_Work = tuple[str, Kind, float, int, float]
"""What is left of one run at a node: its model, kind, units and pictures, and for how long its model has been loading, in
seconds. Bare, as there are dozens of them each time that anything there changes."""
_RUN_ID: Callable[[JobStatus], str] = attrgetter("run_id")


def _work_of(job: JobStatus, sent: Sent | None) -> _Work:
    """sent: the same run, if it is ours; those of others are known as the node tells them."""
    ask = ask_of_job(job) if sent is None else sent.ask
    left = 1 - job.step / job.steps if job.steps else 1.0
    # The last picture is there only when all is done.
    pictures = max(1, math.ceil(ask.pictures * left))
    return ask.model, ask.kind, job.work_units * left, pictures, job.loading_s
