"""What a request would cost and when it would be done (`dry_run`): the same prediction that dispatch goes by."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from router.placement import PRIOR_LOAD_S, Ask, Candidate, Outlook, place, seconds_per_unit

NO_LIMIT = 1_000_000
"""As many runs as a node may hold when the question is where one would run, not whether it could be sent now."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is predicted of one request."""

    fits: bool
    """Whether a node that is well can take it, now or when it has a place."""
    node: str | None
    """Where it would be done first."""
    eta_s: float | None
    """From now to the answer."""
    load_s: float | None
    """Of that, for loading the model."""
    gpu_s: float | None
    """What it takes of a device by itself: what quotas count."""
    queued: int
    """Runs that wait before it."""
    turned_away: dict[str, str]
    """Why not, by the name of each other node."""

    def shown(self, ask: Ask, *, nodes: bool) -> dict[str, Any]:
        """As JSON. nodes: whether to name the nodes, which is the operator's business only."""
        told = {
            "object": "estimate",
            "model": ask.model,
            "task": ask.task,
            "fits": self.fits,
            "eta_s": _rounded(self.eta_s),
            "load_s": _rounded(self.load_s),
            "gpu_seconds": _rounded(self.gpu_s),
            "queued": self.queued,
        }
        return told | ({"node": self.node, "turned_away": self.turned_away} if nodes else {})


def estimate(ask: Ask, waiting: Sequence[Ask], candidates: Sequence[Candidate]) -> Estimate:
    """Predict what becomes of `ask` behind those that wait. Pure.

    Those that wait are shared out evenly among the nodes that take runs: which of them goes where is decided only when a
    place comes free.
    """
    found = place(ask, candidates, depth=NO_LIMIT)
    at = next((each for each in candidates if each.node_id == found.node_id), None)
    if at is None or at.status is None:
        away = dict(found.turned_away)
        return Estimate(found.outlook is Outlook.FULL, None, None, None, None, len(waiting), away)
    status = at.status
    gpu_s = ask.units * seconds_per_unit(ask.model, status)
    cold = not any(model.resident for model in status.models if model.id == ask.model)
    load_s = status.load_s.get(ask.model, PRIOR_LOAD_S) if cold else 0.0
    takers = sum(place(ask, [each], depth=NO_LIMIT).node_id is not None for each in candidates)
    before_s = sum(each.units * seconds_per_unit(each.model, status) for each in waiting) / max(1, takers)
    return Estimate(True, at.name, found.finish_s + before_s, load_s, gpu_s, len(waiting), dict(found.turned_away))


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
