"""Why each run went where it went, and what came of the prediction: told by `aquatint explain`, kept with the run.

A pick costs what it costs and no more: what is told of it is worked out within a second after it, from the nodes as they
were (a candidate never changes), and written for many runs at once when their attempts have ended. A decision is bounded
whatever the fleet's size: beyond `LOOKED_AT` nodes with the model, the others are counted.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from common.catalog import Catalog
from common.clock import clock
from common.errors import CatalogUnavailable
from common.logs import get_logger
from router.fleet import Fleet
from router.metrics import RouterMetrics
from router.placement import Ask, Candidate, Placement, Terms, Want, refusal, terms_of
from router.plan import Plan

log = get_logger(__name__)

DEBUG_HEADER = "x-aquatint-debug"
"""`1` on a request: its answer says in `DECISION_HEADER` why it was made where it was made."""
DECISION_HEADER = "x-aquatint-decision"
KEEP_EVERY_S = 1.0
TURN_S = 0.001
"""How long telling of decisions holds up everything else at most, or as long as one of them takes."""
LOOKED_AT = 128
"""Nodes with the model that a decision looks at."""
NAMED = 16
"""Of them, those that are named: the next best, and as many that were turned away."""
UNWRITTEN = 2000
"""Decisions that wait for a catalog that is away; beyond, the oldest are lost."""


class Pick(NamedTuple):
    """A node was picked for a run: all that the pick went by."""

    node: str
    terms: Terms
    ask: Ask
    waited_s: float
    """In the router."""
    looked_at: Sequence[Candidate]
    """Nodes that have the model, as they were; `LOOKED_AT` at most."""
    having: int
    """How many have it."""
    without: int
    """How many have it not."""
    now_s: float
    want: Want
    at_s: float
    """Seconds since 1970, UTC."""

    def told(self) -> dict[str, Any]:
        """As JSON."""
        refused = {each.name: why[1] for each in self.looked_at if (why := refusal(self.ask, each)) is not None}
        fit = [
            (terms_of(self.ask, each, now_s=self.now_s, want=self.want), each.name)
            for each in self.looked_at
            if each.name not in refused and each.name != self.node
        ]
        best = sorted(fit, key=lambda other: (other[0].cost_s, other[1]))[:NAMED]
        named = dict(sorted(refused.items())[:NAMED])
        work, _, _ = self.ask.kind.rpartition("@")
        return {
            "node": self.node,
            "at": round(self.at_s, 6),
            "waited_s": round(self.waited_s, 3),
            "work": {"units": round(self.ask.units, 3), "pictures": self.ask.pictures, "kind": work},
            **_shown(self.terms),
            "others": [{"node": name} | _shown(terms) for terms, name in best],
            "turned_away": named,
            "not_named": self.having - len(best) - len(named) - 1,
            "without_the_model": self.without,
        }


def pick_of(placement: Placement, ask: Ask, fleet: Fleet, *, now_s: float, waited_s: float) -> Pick:
    """What is known of a pick in the moment it is made."""
    assert placement.node_id is not None
    assert placement.terms is not None
    having = fleet.count_having(ask.model)
    return Pick(
        node=fleet.candidates[placement.node_id].name,
        terms=placement.terms,
        ask=ask,
        waited_s=waited_s,
        looked_at=fleet.nodes_having(ask.model, LOOKED_AT),
        having=having,
        without=len(fleet.candidates) - having,
        now_s=now_s,
        want=fleet.want,
        at_s=clock.now_s(),
    )


def _shown(terms: Terms) -> dict[str, Any]:
    waiting_s, load_s, eviction_s, own_s = terms
    parts = {
        "waiting": round(waiting_s, 3),
        "load": round(load_s, 3),
        "eviction": round(eviction_s, 3),
        "own": round(own_s, 3),
    }
    return {"terms_s": parts, "predicted_s": round(terms.finish_s, 3)}


@dataclass(slots=True, eq=False)
class _Made:
    """One decision. told: once it is worked out, in the place of the pick."""

    run_id: str
    attempt: int
    predicted_s: float
    pick: Pick | None
    told: dict[str, Any] = field(default_factory=dict)
    ended: bool = False

    def work_out(self) -> dict[str, Any]:
        if self.pick is not None:
            self.told = {"attempt": self.attempt} | self.pick.told() | self.told
            self.pick = None
        return self.told


class Decisions:
    """Those of one router that are not in the catalog yet."""

    def __init__(self, catalog: Catalog, metrics: RouterMetrics) -> None:
        self._catalog = catalog
        self._metrics = metrics
        self._made: dict[tuple[str, int], _Made] = {}

    def began(self, run_id: str, attempt: int, pick: Pick) -> None:
        """An attempt is about to be sent."""
        self._made[run_id, attempt] = _Made(run_id, attempt, pick.terms.finish_s, pick)

    def ended(self, run_id: str, attempt: int, *, took_s: float | None) -> None:
        """It has ended. took_s: from being sent to its answer; None where it failed, or ended later than its answer began."""
        made = self._made.get((run_id, attempt))
        if made is None:
            return
        made.ended = True
        made.told["took_s"] = None if took_s is None else round(took_s, 3)
        if took_s is not None and attempt:
            self._metrics.predicted("node", made.predicted_s, took_s)

    def split(self, run_id: str, plan: Plan) -> None:
        """A run is about to be made in parts: the plan is its attempt 0."""
        self._made[run_id, 0] = _Made(run_id, 0, plan.finish_s, None, told={"attempt": 0, **plan.told()})

    def shown(self, run_id: str, attempt: int) -> str:
        """One that was begun here just now, as a header: JSON in ASCII."""
        return json.dumps(self._made[run_id, attempt].work_out(), separators=(",", ":"))

    async def of(self, run_id: str) -> list[dict[str, Any]]:
        """All of a run, by attempt. Raises: CatalogUnavailable."""
        written = {each["attempt"]: each for each in await self._catalog.decisions.of(run_id)}
        here = {attempt: made.work_out() for (run, attempt), made in self._made.items() if run == run_id}
        return [each for _, each in sorted((written | here).items())]

    async def keep(self) -> None:
        """Work out what was decided of late, and write down what has ended. Raises: CatalogUnavailable."""
        rest_at_s = time.monotonic() + TURN_S
        for made in list(self._made.values()):
            if made.pick is not None:
                made.work_out()
                if time.monotonic() >= rest_at_s:
                    await asyncio.sleep(0)
                    rest_at_s = time.monotonic() + TURN_S
        ended = [made for made in self._made.values() if made.ended]
        for made in ended[:-UNWRITTEN]:
            del self._made[made.run_id, made.attempt]
        ended = ended[-UNWRITTEN:]
        await self._catalog.decisions.add({(made.run_id, made.attempt): made.told for made in ended})
        for made in ended:
            self._made.pop((made.run_id, made.attempt), None)

    async def keep_at_last(self) -> None:
        """The same where the process ends: what cannot be written is lost."""
        try:
            await self.keep()
        except CatalogUnavailable as error:
            log.warning("decisions_not_kept", why=error.message)
