"""What work is likely to cost on a device that has not done it yet, going by devices that have.

A model that another node has measured on the same device costs what it cost there. Else what it cost on other devices is
scaled by how much slower this one is: at the work that both have done, as from one device to another all models grow slower
together, within a factor of two or so; where they share none, as the priors of their kinds have it. The mean of several
devices is gone by, as each has models that it is especially good or bad at.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from router.candidates import PRIOR_PACE
from router.costs import LEAST_S, NOTHING_LEARNED, Cost, CostBook, Device, Kind, Learned

COMPARE_EVERY_S = 1.0
"""At most: a fleet that is new learns many things at once, and each changes what is likely on all nodes."""


@dataclass(frozen=True, slots=True)
class _Likeness:
    """How one device is to another."""

    shared: int
    """Kinds of work that both have done."""
    alike: bool
    """Whether they are of one kind."""
    slower: float
    """Times that the one needs longer for the same work."""
    loads_slower: float
    """The same of loads, which hang on disks rather than on devices: 1 where nothing is known."""

    @property
    def rank(self) -> tuple[bool, bool]:
        """Higher: what the other takes says more."""
        return self.shared > 0, self.alike


def likely_costs(here: Device, known: Mapping[Device, Mapping[str, Learned]]) -> dict[str, Learned]:
    """What each model costs on a device, by model, of all that were measured on any. known: what was measured, by device."""
    own = known.get(here, {})
    others = [(_likeness(here, own, device, learned), learned) for device, learned in known.items() if device != here]
    told = dict(own)
    for model in {model for _, learned in others for model in learned}:
        mine = own.get(model, Learned())
        if not mine.costs or mine.load_s is None:
            theirs = [(likeness, learned[model]) for likeness, learned in others if model in learned]
            load_s = _load_s(theirs) if mine.load_s is None else mine.load_s
            told[model] = Learned(mine.costs or _costs(theirs), load_s)
    return told


_Elsewhere = list[tuple[_Likeness, Learned]]
"""What was learned of one model on other devices."""


def _costs(elsewhere: _Elsewhere) -> dict[Kind, Cost]:
    nearest = _nearest([(likeness, each) for likeness, each in elsewhere if each.costs])
    costs = dict[Kind, Cost]()
    for kind in {kind for _, each in nearest for kind in each.costs}:
        having = [(likeness, each.costs[kind]) for likeness, each in nearest if kind in each.costs]
        step_s = _mean((likeness.slower * cost.step_s, likeness.shared) for likeness, cost in having)
        costs[kind] = Cost(step_s, _mean((likeness.slower * cost.picture_s, likeness.shared) for likeness, cost in having))
    return costs


def _load_s(elsewhere: _Elsewhere) -> float | None:
    nearest = _nearest([(likeness, each) for likeness, each in elsewhere if each.load_s is not None])
    if not nearest:
        return None
    return _mean((likeness.loads_slower * (each.load_s or 0.0), likeness.shared) for likeness, each in nearest)


def _nearest(elsewhere: _Elsewhere) -> _Elsewhere:
    best = max((likeness.rank for likeness, _ in elsewhere), default=None)
    return [each for each in elsewhere if each[0].rank == best]


def _mean(weighed: Iterable[tuple[float, int]]) -> float:
    """Of seconds with their weights, the geometric mean: times differ by factors. Nothing weighs less than one."""
    logs = [(math.log(max(seconds, LEAST_S)), max(1, weight)) for seconds, weight in weighed]
    return math.exp(sum(log_s * weight for log_s, weight in logs) / sum(weight for _, weight in logs))


def _likeness(here: Device, own: Mapping[str, Learned], there: Device, learned: Mapping[str, Learned]) -> _Likeness:
    both = [(own[model], learned[model]) for model in own.keys() & learned.keys()]
    pairs = [(mine.costs[kind], its.costs[kind]) for mine, its in both for kind in mine.costs.keys() & its.costs.keys()]
    slower = [(mine.step_s / its.step_s, 1) for mine, its in pairs]
    loads_slower = [(mine.load_s / its.load_s, 1) for mine, its in both if mine.load_s and its.load_s]
    prior = _prior_pace(here) / _prior_pace(there)
    alike = here.kind == there.kind
    return _Likeness(len(pairs), alike, _mean(slower) if slower else prior, _mean(loads_slower) if loads_slower else 1.0)


def _prior_pace(device: Device) -> float:
    return PRIOR_PACE.get(device.kind, PRIOR_PACE["cpu"])


class Likely:
    """What is likely on each device, compared anew once something was learned."""

    def __init__(self, costs: CostBook) -> None:
        self._costs = costs
        self._lessons = 0
        self._compared_at_s = -math.inf
        self._known: dict[Device, dict[str, Learned]] = {}
        self._told: dict[Device, dict[str, Learned]] = {}

    def of(self, device: Device | None, now_s: float) -> Mapping[str, Learned]:
        """As `likely_costs`; the same object until it changes. device: None where it is not known. now_s: on any clock."""
        if device is None:
            return NOTHING_LEARNED
        if self._lessons != self._costs.lessons and now_s - self._compared_at_s >= COMPARE_EVERY_S:
            self._lessons, self._compared_at_s = self._costs.lessons, now_s
            self._known, self._told = self._costs.by_device(), {}
        if device not in self._told:
            self._told[device] = likely_costs(device, self._known)
        return self._told[device]
