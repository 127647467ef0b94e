"""What a request would cost and when it would be done (`dry_run`): the same prediction that dispatch goes by."""

from dataclasses import dataclass
from typing import Any

from router.fleet import Fleet
from router.placement import Ask, refusal


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


def estimate(ask: Ask, fleet: Fleet, *, queued: int, queued_s: float, now_s: float) -> Estimate:
    """Predict what becomes of `ask` behind those that wait: `queued` of them, with `queued_s` of work. Changes nothing.

    Those that wait are shared out evenly among the nodes that take runs: which of them goes where is decided only when a
    place comes free.
    """
    found = fleet.place(ask, now_s)
    reasons = {each.name: refusal(ask, each) for each in fleet.candidates.values()}
    away = {name: reason[1] for name, reason in reasons.items() if reason is not None}
    if found.node_id is None or found.terms is None:
        return Estimate(False, None, None, None, None, queued, away)
    before_s = queued_s / (len(reasons) - len(away))
    terms = found.terms
    at = fleet.candidates[found.node_id].name
    return Estimate(True, at, terms.finish_s + before_s, terms.load_s, terms.own_s, queued, away)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
