"""Choose a node: filter, predict the finish on each, pick. Pure: no clock, no I/O, no state.

finish(node) = work already there + load of the checkpoint if it is cold there + this run's own work,
each in seconds, from what the node has measured (seconds per megapixel-step, seconds to load), else from priors.
One cold load costs as much as 30-100 pictures of a turbo model, so the load belongs into the sum.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum

from common.node_api import MemoryLimit, ModelStatus, NodePhase, NodeStatus

PRIOR_S_PER_UNIT = {"cuda": 0.1, "mps": 1.0, "cpu": 10.0}
"""Seconds for a megapixel-step before anything was measured: SDXL on a recent GPU, on a laptop's, on a few cores.
Only their order matters: the first picture replaces them."""
PRIOR_LOAD_S = 20.0


class Health(StrEnum):
    """The router's verdict on a node. Only `online` takes runs."""

    PENDING = "pending"
    ONLINE = "online"
    ERROR = "error"
    OFFLINE = "offline"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Ask:
    """What one run needs. `units`: megapixel-steps."""

    model: str
    task: str
    units: float
    loras: frozenset[str] = frozenset()
    """Names of LoRAs, as far as any node knows them; the others each node judges for itself."""
    pixels: int = 0
    """Area of one picture."""
    extras: frozenset[str] = frozenset()
    """The same of what else it needs, in the words of `common.node_api.extras_of`."""
    tried: frozenset[str] = frozenset()
    """Ids of nodes that already failed under this run."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node as placement sees it. `ours`: units of each run this router sent and that is unanswered, by run id."""

    node_id: str
    name: str
    health: Health
    status: NodeStatus | None
    ours: Mapping[str, tuple[str, float]] = field(default_factory=dict)
    """run id -> (model, units)"""
    sitting_out: Mapping[str, str] = field(default_factory=dict)
    """model -> why this node is not given it at present"""


class Outlook(IntEnum):
    """How good the prospects of a run without a place are: the best of what any node offers."""

    NONE = 0
    """No node could take it even if all were well."""
    AWAY = 1
    """A node that could take it is offline, draining, loading, or sits out."""
    FULL = 2
    """A node will take it as soon as it has a place."""


@dataclass(frozen=True, slots=True)
class Placement:
    """The pick, and why the others were turned away."""

    node_id: str | None
    finish_s: float
    turned_away: Mapping[str, str]
    outlook: Outlook
    fits_px: int | None = None
    """Area of the largest picture that nodes turned away for their memory would take; None where there are none of them."""


def place(ask: Ask, candidates: Sequence[Candidate], *, depth: int) -> Placement:
    """The node where `ask` would finish first; ties go to the one holding fewer of our runs, then by name.

    depth: runs a node may hold beyond those it runs at once; so many times the model's batch where it makes batches.
    """
    turned_away: dict[str, str] = {}
    outlook = Outlook.NONE
    best: tuple[float, int, str, str] | None = None
    fits_px: int | None = None
    for candidate in candidates:
        refusal = _refusal(ask, candidate, depth)
        if refusal is not None:
            turned_away[candidate.name] = refusal[1]
            outlook = max(outlook, refusal[0])
            if (limit := too_small(ask, candidate.status)) is not None:
                fits_px = max(fits_px or 0, limit.fits_px)
            continue
        rank = (predict_finish_s(ask, candidate), len(candidate.ours), candidate.name, candidate.node_id)
        best = rank if best is None else min(best, rank)
    if best is None:
        return Placement(None, float("inf"), turned_away, outlook, fits_px)
    return Placement(best[3], best[0], turned_away, Outlook.FULL)


def _refusal(ask: Ask, candidate: Candidate, depth: int) -> tuple[Outlook, str] | None:
    if candidate.node_id in ask.tried:
        return Outlook.NONE, "failed under this run before"
    if candidate.health is not Health.ONLINE or candidate.status is None:
        return Outlook.AWAY, str(candidate.health)
    if candidate.status.phase is not NodePhase.READY:
        return Outlook.AWAY, str(candidate.status.phase)
    model = _model(ask.model, candidate.status)
    if model is None:
        return Outlook.NONE, "does not have the model"
    if ask.task not in model.tasks:
        return Outlook.NONE, f"the model makes no {ask.task} there"
    if missing := ask.loras.difference(model.loras):
        return Outlook.NONE, f"does not have the LoRA {min(missing)!r}"
    if (limit := too_small(ask, candidate.status)) is not None:
        return Outlook.NONE, f"has not the memory for more than {limit.fits_px:,} pixels"
    if missing := ask.extras.difference(model.extras):
        return Outlook.NONE, f"does not have {min(missing)}"
    why = model.unavailable or candidate.sitting_out.get(ask.model)
    if why is not None:
        return Outlook.AWAY, why
    # A node that makes several runs of the model in one pass is given as many, and as many again to wait.
    room = min((candidate.status.max_concurrency + depth) * model.batch, model.batch + candidate.status.max_queued)
    if held(candidate) >= room:
        return Outlook.FULL, "full"
    return None


def too_small(ask: Ask, status: NodeStatus | None) -> MemoryLimit | None:
    """The limit of a node's memory that a picture is beyond, as the node itself found out; None where it may fit."""
    model = None if status is None else _model(ask.model, status)
    limit = None if model is None else model.memory_limits.get(ask.task)
    return limit if limit is not None and ask.pixels >= limit.too_large_px else None


def held(candidate: Candidate) -> int:
    """Runs at the node: ours, known exactly, and those its last status says others sent."""
    if candidate.status is None:
        return len(candidate.ours)
    return len(candidate.ours) + sum(job.run_id not in candidate.ours for job in candidate.status.jobs)


def predict_finish_s(ask: Ask, candidate: Candidate) -> float:
    """Seconds from now until `ask` would be done at `candidate`, which must have a status."""
    status = candidate.status
    assert status is not None
    waiting_s = 0.0
    reported = {job.run_id: job for job in status.jobs}
    for run_id, (model, units) in candidate.ours.items():
        job = reported.pop(run_id, None)
        waiting_s += (units if job is None else _left(job.work_units, job.step, job.steps)) * seconds_per_unit(model, status)
    for job in reported.values():
        waiting_s += _left(job.work_units, job.step, job.steps) * seconds_per_unit(job.model, status)
    model_status = _model(ask.model, status)
    cold = model_status is None or not model_status.resident
    load_s = status.load_s.get(ask.model, PRIOR_LOAD_S) if cold else 0.0
    return waiting_s + load_s + ask.units * seconds_per_unit(ask.model, status)


def seconds_per_unit(model: str, status: NodeStatus) -> float:
    """Measured at the node, else the mean of what it measured for other models, else the prior of its kind of device."""
    measured = status.seconds_per_unit
    if model in measured:
        return measured[model]
    if measured:
        return sum(measured.values()) / len(measured)
    return PRIOR_S_PER_UNIT.get(status.device.kind, PRIOR_S_PER_UNIT["cpu"])


def _left(units: float, step: int, steps: int) -> float:
    return units * (1 - step / steps) if steps else units


def _model(name: str, status: NodeStatus) -> ModelStatus | None:
    return next((model for model in status.models if model.id == name), None)
