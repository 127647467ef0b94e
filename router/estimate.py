"""What a request would cost and when it would be done (`dry_run`): the same prediction that dispatch goes by."""

from dataclasses import dataclass
from typing import Any

from router.fleet import Fleet
from router.forecast import Foreseen
from router.placement import Ask, refusal
from router.plan import Plan


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

    def shown(self, ask: Ask, plan: Plan | None, *, nodes: bool) -> dict[str, Any]:
        """As JSON. plan: how it would be made in parts. nodes: whether to name them, which is the operator's business only."""
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
        if plan is not None:
            parts = plan.told()["parts"]
            told["parts"] = parts if nodes else [{"pictures": part["pictures"]} for part in parts]
            told["eta_s"] = _rounded(plan.finish_s)
        return told | ({"node": self.node, "turned_away": self.turned_away} if nodes else {})


def estimate(ask: Ask, fleet: Fleet, foreseen: Foreseen, *, now_s: float) -> Estimate:
    """What becomes of `ask`, of which so much is `foreseen`. Changes nothing."""
    queued = foreseen.position - 1
    found = fleet.place(ask, now_s)
    reasons = {each.name: refusal(ask, each) for each in fleet.candidates.values()}
    away = {name: reason[1] for name, reason in reasons.items() if reason is not None}
    if found.node_id is None or found.terms is None:
        return Estimate(False, None, None, None, None, queued, away)
    at = fleet.candidates[found.node_id].name
    return Estimate(True, at, foreseen.finish_s, found.terms.load_s, found.terms.own_s, queued, away)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
