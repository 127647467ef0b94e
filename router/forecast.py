"""When those that wait will be done: the line played forward over the fleet, by the same placement that will bind them. Pure.

Each run in its turn is given to the node where it finishes first, which is then as much busier. What comes later and goes
ahead, being short or of a key that had less, is not foreseen; nor is a node that comes or goes.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from router.fleet import Fleet
from router.line import Waiting
from router.placement import Ask, Candidate, with_run

POSITION_HEADER = "x-queue-position"
"""Place in the line when the request came, from 1; 0 where a node took it at once."""
ETA_HEADER = "x-eta-s"
"""Seconds, as predicted then, from the request to its answer."""
MOST_LOOKS = 4096
"""Nodes looked at in one forecast, about 2 ms; for those behind, times are told by the mean."""


class Foreseen(NamedTuple):
    """What is predicted of one run."""

    position: int
    """Its place in the line, from 1; 0 once it has a node."""
    finish_s: float | None
    """Seconds from now until it is done; None where no node can take it now."""
    own_s: float = 0.0
    """Of them, those that it would need without others before it: its load and its work."""
    sure: bool = True
    """Whether all of it rests on what was measured. What is guessed is told, and nobody is refused for it."""

    @property
    def wait_s(self) -> float:
        """Seconds from now until its turn."""
        return max(0.0, (self.finish_s or 0.0) - self.own_s)


class Forecast:
    """The line as it was when it was last played forward, and what has joined its end since."""

    def __init__(self) -> None:
        self._after: dict[str, Candidate] | None = None
        """The nodes once all that wait have run; None while nobody waits."""
        self._sure = True
        self._played = self._looks = 0
        self._exact_until_s = -math.inf
        """When the last would begin of those that were given to a node."""
        self._behind_s = 0.0
        """Work on each node of those behind them."""

    def play(self, order: Sequence[Waiting], fleet: Fleet, now_s: float) -> list[Foreseen]:
        """Of each of those that wait, in their order. Leaves the fleet as it is."""
        self._after, self._sure, self._played, self._looks = None, True, 0, 0
        self._exact_until_s, self._behind_s = -math.inf, 0.0
        return self.play_on(order, fleet, now_s)

    def play_on(self, order: Sequence[Waiting], fleet: Fleet, now_s: float) -> list[Foreseen]:
        """Of those behind all that were played so far, on the nodes as they were when the first was."""
        foreseen: list[Foreseen] = []
        with _playing(fleet, self._after) as nodes:
            for position, waiting in enumerate(order, start=self._played + 1):
                count = max(1, fleet.count_having(waiting.ask.model))
                if self._looks < MOST_LOOKS:
                    self._looks += count
                    foreseen.append(_next(position, waiting.ask, fleet, now_s, sure=self._sure))
                    self._sure = foreseen[-1].sure
                    self._exact_until_s = max(self._exact_until_s, now_s + foreseen[-1].wait_s)
                else:
                    finish_s = max(0.0, self._exact_until_s - now_s) + self._behind_s + waiting.work_s
                    foreseen.append(Foreseen(position, finish_s, waiting.work_s, self._sure))
                    self._behind_s += waiting.work_s / count
            if order:
                self._after = nodes
        self._played += len(order)
        return foreseen

    def join(self, position: int, ask: Ask, fleet: Fleet, now_s: float, *, keep: bool) -> Foreseen:
        """Of a run at the end of the line. keep: it stays there, so those that come next are behind it."""
        with _playing(fleet, self._after) as nodes:
            foreseen = _next(position, ask, fleet, now_s, sure=self._sure)
            if keep:
                self._after, self._sure = nodes, foreseen.sure
        return foreseen


@contextmanager
def _playing(fleet: Fleet, nodes: dict[str, Candidate] | None) -> Iterator[dict[str, Candidate]]:
    """Let placement see these nodes, or a copy of those there are, in the place of the fleet's."""
    kept = fleet.candidates
    # Nodes that came since are as they are; those that left are not looked at.
    fleet.candidates = dict(kept) if nodes is None else kept | {id: each for id, each in nodes.items() if id in kept}
    try:
        yield fleet.candidates
    finally:
        fleet.candidates = kept


def _next(position: int, ask: Ask, fleet: Fleet, now_s: float, *, sure: bool) -> Foreseen:
    """sure: of those before it."""
    placement = fleet.place(ask, now_s)
    if placement.node_id is None or placement.terms is None:
        return Foreseen(position, None, sure=sure)
    candidate = fleet.candidates[placement.node_id]
    fleet.candidates[placement.node_id] = with_run(ask, candidate, now_s=now_s)
    terms = placement.terms
    sure = sure and not candidate.offers[ask.model].guessed
    return Foreseen(position, terms.finish_s, terms.load_s + terms.own_s, sure)


def foreseen_headers(foreseen: Foreseen | None) -> dict[str, str]:
    """What an answer says of when it was to come."""
    if foreseen is None:
        return {}
    told = {POSITION_HEADER: str(foreseen.position)}
    return told if foreseen.finish_s is None else told | {ETA_HEADER: f"{foreseen.finish_s:.2f}"}


def foreseen_event(foreseen: Foreseen | None) -> bytes:
    """The same as a comment in a stream of events, which every client passes over."""
    told = "".join(f" {name}={value}" for name, value in foreseen_headers(foreseen).items())
    return f": waiting{told}\n\n".encode()
