"""One request over several nodes: whether, on which, and how many pictures each. Pure, as `placement`.

Pictures of one request are alike, so each goes in turn to the node that would be done with it first; the fewest nodes that
then suffice get them. A node that would have to load pays for it in its predicted finish, and for the model that leaves. Only
idle nodes take part, and only those that would make the very same pictures: see `Offer.build`.
"""

import heapq
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from router.placement import Ask, Candidate, Want, place, refusal, terms_of

LEAST_GAIN = 0.1
"""Share of the time on one node that must be won, and of the time on warm nodes where others would have to load: predictions
are off by as much, and each part costs records and an answer of its own."""
LEAST_GAIN_S = 0.25


@dataclass(frozen=True, slots=True)
class Part:
    """So many pictures by one node."""

    node: str
    pictures: int
    finish_s: float
    """From now, as predicted."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is predicted to be done sooner than the whole on any one node."""

    parts: tuple[Part, ...]
    """In the order of their pictures, the largest first."""
    ask: Ask
    """For the whole, held to nodes that make the same pictures."""
    whole_node: str
    whole_s: float
    """When that one node would be done with all."""

    @property
    def finish_s(self) -> float:
        """When the last part is done, in seconds from now."""
        return max(part.finish_s for part in self.parts)

    def asks(self) -> list[Ask]:
        """What placement is asked for each part."""
        shares = [part.pictures / self.ask.pictures for part in self.parts]
        counts = [part.pictures for part in self.parts]
        return [self.ask._replace(units=self.ask.units * s, pictures=n) for s, n in zip(shares, counts, strict=True)]

    def told(self) -> dict[str, Any]:
        """As JSON."""
        parts = [{"node": p.node, "pictures": p.pictures, "predicted_s": round(p.finish_s, 3)} for p in self.parts]
        whole = {"node": self.whole_node, "predicted_s": round(self.whole_s, 3)}
        return {"parts": parts, "predicted_s": round(self.finish_s, 3), "whole": whole}


@dataclass(frozen=True, slots=True)
class _Idle:
    """A node that could take part; seconds."""

    name: str
    load_s: float
    begin_s: float
    """Before its first picture, with what its load costs others: what the choice goes by."""
    picture_s: float


def plan(ask: Ask, candidates: Collection[Candidate], *, now_s: float, want: Want) -> Plan | None:
    """Who makes what of `ask`; None where one node is (nearly) as quick. now_s, want: as for `placement.place`."""
    best = place(ask, candidates, now_s=now_s, want=want)
    if ask.pictures < 2 or best.node_id is None or best.terms is None:
        return None
    first = next(each for each in candidates if each.node_id == best.node_id)
    alike = ask._replace(build=first.offers[ask.model].build)
    one = alike._replace(units=ask.units / ask.pictures, pictures=1)
    idle = [_idle(one, each, now_s, want) for each in candidates if not each.held and refusal(alike, each) is None]
    shares = _shares(idle, ask.pictures)
    warm = _shares([each for each in idle if not each.load_s], ask.pictures)
    if warm and not _is_gain(_cost_s(warm), _cost_s(shares)):
        shares = warm
    if len(shares) < 2 or not _is_gain(best.terms.cost_s, _cost_s(shares)):
        return None
    parts = [Part(node.name, pictures, node.load_s + pictures * node.picture_s) for node, pictures in shares]
    return Plan(tuple(parts), alike, first.name, best.terms.finish_s)


def _idle(one: Ask, candidate: Candidate, now_s: float, want: Want) -> _Idle:
    """one: a single picture."""
    terms = terms_of(one, candidate, now_s=now_s, want=want)
    return _Idle(candidate.name, terms.load_s, terms.load_s + terms.eviction_s, terms.own_s)


def _shares(nodes: Sequence[_Idle], pictures: int) -> list[tuple[_Idle, int]]:
    """How many pictures each node makes for the last to be done first; the most first, and no node more than it takes."""
    if not nodes:
        return []
    turns = [(node.begin_s + node.picture_s, node.name, node) for node in nodes]
    heapq.heapify(turns)
    last_s = 0.0
    for _ in range(pictures):
        last_s, _, node = turns[0]
        heapq.heapreplace(turns, (last_s + node.picture_s, node.name, node))
    # Not less by what floats lose.
    within_s = last_s * (1 + 1e-9)
    rooms = [(_room(node, within_s, pictures), node) for node in nodes]
    shares, left = list[tuple[_Idle, int]](), pictures
    for room, node in sorted(rooms, key=lambda each: (-each[0], each[1].begin_s, each[1].name)):
        if left:
            shares.append((node, min(room, left)))
            left -= shares[-1][1]
    return shares


def _room(node: _Idle, within_s: float, pictures: int) -> int:
    """Pictures that a node is done with by then, `pictures` at most."""
    if node.begin_s + node.picture_s * pictures <= within_s:
        return pictures
    return max(0, int((within_s - node.begin_s) // node.picture_s))


def _cost_s(shares: Sequence[tuple[_Idle, int]]) -> float:
    return max(node.begin_s + pictures * node.picture_s for node, pictures in shares)


def _is_gain(before_s: float, after_s: float) -> bool:
    return before_s - after_s >= max(LEAST_GAIN_S, LEAST_GAIN * before_s)
