"""All nodes as placement sees them, indexed so that a pick looks only at those that have the model.

Whoever owns the truth (the router's registry, or the simulator) puts a new candidate whenever a node changes; runs that
wait are then bound to nodes here, by the same code in both.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TypeVar

from router.candidates import PRIOR_PACE
from router.line import Line, Waiting
from router.placement import Ask, Candidate, Placement, place, with_claim
from router.plan import Plan, plan

LOOK_AHEAD = 64
"""Waiting runs looked at when a place comes free; more would cost more than it finds."""
DEMAND_HALF_LIFE_S = 600.0
"""An arrival counts half after this long: demand follows the hour, not the minute."""
SPARE_COPIES = 1.0

W = TypeVar("W", bound=Waiting)


class Demand:
    """The work that is asked of each model, in seconds a second: how many nodes it would keep busy. Old work fades."""

    def __init__(self) -> None:
        self._work_s: dict[str, float] = {}
        self._began_s: float | None = None
        self._since_s = 0.0

    def note(self, model: str, work_s: float, now_s: float) -> None:
        """One arrival. Newer ones weigh more, which is the same as older ones fading and touches one number only."""
        if self._began_s is None:
            self._began_s = self._since_s = now_s
        weight = math.exp2((now_s - self._since_s) / DEMAND_HALF_LIFE_S)
        if weight > 1e9:
            self._work_s = {name: work_s / weight for name, work_s in self._work_s.items() if work_s > weight * 1e-6}
            self._since_s, weight = now_s, 1.0
        self._work_s[model] = self._work_s.get(model, 0.0) + work_s * weight

    def nodes_kept_busy(self, model: str, now_s: float) -> float:
        """Seconds of work a second, over the last while."""
        if self._began_s is None or model not in self._work_s:
            return 0.0
        faded = math.exp2((self._since_s - now_s) / DEMAND_HALF_LIFE_S)
        # The weights of all moments since the beginning; at least a tenth of a half-life, as one arrival is no trend.
        seen_s = max(now_s - self._began_s, DEMAND_HALF_LIFE_S / 10)
        mass_s = DEMAND_HALF_LIFE_S / math.log(2) * (1 - math.exp2(-seen_s / DEMAND_HALF_LIFE_S))
        return self._work_s[model] * faded / mass_s


class Fleet:
    """See the module."""

    def __init__(self) -> None:
        self._candidates: dict[str, Candidate] = {}
        self._stale: dict[str, Callable[[], Candidate]] = {}
        self.demand = Demand()
        self._having: dict[str, dict[str, None]] = {}
        self._copies: Counter[str] = Counter()
        self._free: dict[str, None] = {}
        self._now_s = 0.0

    @property
    def candidates(self) -> dict[str, Candidate]:
        """All nodes by id, as they are now."""
        if self._stale:
            self._renew()
        return self._candidates

    @candidates.setter
    def candidates(self, candidates: dict[str, Candidate]) -> None:
        """As they are taken to be, by one who puts back what was there."""
        self._candidates = candidates

    def put_soon(self, node_id: str, now: Callable[[], Candidate]) -> None:
        """Take over the state of a node that is there already once somebody asks for it: most runs come and leave before.

        now: its state, when it is asked for; of its offers and its being away nothing has changed.
        """
        self._stale[node_id] = now

    def _renew(self) -> None:
        stale, self._stale = self._stale, {}
        for now in stale.values():
            self.put(now())

    def put(self, candidate: Candidate) -> None:
        """Take over a node's new state."""
        node_id = candidate.node_id
        self._stale.pop(node_id, None)
        before = self._candidates.get(node_id)
        if before is candidate:
            return
        if before is None or (before.offers is not candidate.offers and before.offers.keys() != candidate.offers.keys()):
            self._forget_offers(before)
            for model in candidate.offers:
                self._having.setdefault(model, {})[node_id] = None
        # Most runs only change which of the same models was used last.
        if before is None or (before.resident != candidate.resident and set(before.resident) != set(candidate.resident)):
            self._copies.subtract(before.resident if before is not None else ())
            self._copies.update(candidate.resident)
        if candidate.has_place and candidate.away is None:
            self._free[node_id] = None
        else:
            self._free.pop(node_id, None)
        self._candidates[node_id] = candidate

    def drop(self, node_id: str) -> None:
        """A node that is no longer registered."""
        self._stale.pop(node_id, None)
        candidate = self._candidates.pop(node_id, None)
        if candidate is not None:
            self._forget_offers(candidate)
            self._copies.subtract(candidate.resident)
            self._free.pop(node_id, None)

    def _forget_offers(self, candidate: Candidate | None) -> None:
        for model in candidate.offers if candidate is not None else ():
            having = self._having[model]
            having.pop(candidate.node_id if candidate is not None else "", None)
            if not having:
                del self._having[model]

    def want(self, model: str) -> float:
        """How much one copy of a model is wanted when it would have to leave: 0 when nobody asks for it.

        1 while its copies are no more than the nodes its demand keeps busy and one to spare; less, the more there are.
        """
        busy = self.demand.nodes_kept_busy(model, self._now_s)
        return min(1.0, (busy + SPARE_COPIES) / max(1, self._copies[model])) if busy else 0.0

    def place(self, ask: Ask, now_s: float) -> Placement:
        """The pick among the nodes that have the model; with none of them fit, every node's reason."""
        having = self.nodes_having(ask.model)
        self._now_s = now_s
        placement = place(ask, having, now_s=now_s, want=self.want)
        if placement.node_id is None and len(having) < len(self.candidates):
            return place(ask, self.candidates.values(), now_s=now_s, want=self.want)
        return placement

    def plan(self, ask: Ask, now_s: float) -> Plan | None:
        """How idle nodes would share its pictures, where they would be done sooner than one node."""
        self._now_s = now_s
        return plan(ask, self.nodes_having(ask.model), now_s=now_s, want=self.want)

    def work_s(self, ask: Ask) -> float:
        """Seconds of the run's own work on the quickest node that has the model: what order and fairness go by.

        `Offer.own_s` of each is written out, as in a pick.
        """
        model, kind, units, pictures = ask.model, ask.kind, ask.units, ask.pictures
        least_s = math.inf
        for node_id in self._having.get(model, ()):
            offer = self._candidates[node_id].offers[model]
            if offer.costs:
                cost = offer.costs[kind]
                own_s = units * cost.step_s + pictures * cost.picture_s
            else:
                own_s = units * offer.pace
            if own_s < least_s:
                least_s = own_s
        return least_s if least_s < math.inf else units * PRIOR_PACE["cuda"]

    @property
    def has_place(self) -> bool:
        """Whether any node could be sent a run now."""
        if self._stale:
            self._renew()
        return bool(self._free)

    def nodes_having(self, model: str, limit: int | None = None) -> list[Candidate]:
        """Nodes that have a model, well or not; the first `limit` of them."""
        return list(map(self.candidates.__getitem__, islice(self._having.get(model, ()), limit)))

    def count_having(self, model: str) -> int:
        """How many there are."""
        return len(self._having.get(model, ()))


def bind(line: Line[W], fleet: Fleet, now_s: float, *, grant: Callable[[W, Placement], None]) -> None:
    """Give free places to waiting runs, in their order; each only to the node where it finishes first.

    A run whose node is full claims its turn there, so that those behind it see the node as busy as it will be: without
    this, all that wait for one model would wait for its only copy, and nobody would load a second.
    grant: takes the run out of the line and puts the node's new state into the fleet.
    """
    unclaimed: dict[str, Candidate] = {}
    try:
        for waiting in _in_order(line, fleet):
            placement = fleet.place(waiting.ask, now_s)
            if placement.has_place:
                grant(waiting, placement)
                # What was claimed there is forgotten with the state that the node had before.
                unclaimed.pop(placement.node_id or "", None)
            elif placement.node_id is not None:
                full = fleet.candidates[placement.node_id]
                unclaimed.setdefault(placement.node_id, full)
                fleet.candidates[placement.node_id] = with_claim(waiting.ask, full, now_s=now_s)
    finally:
        fleet.candidates |= unclaimed


def _in_order(line: Line[W], fleet: Fleet) -> Iterator[W]:
    if not fleet.has_place:
        return
    for waiting in line.front(LOOK_AHEAD):
        yield waiting
        if not fleet.has_place:
            return
