"""Choose a node: filter, predict the finish on each, pick. Pure: no clock, no I/O, no state.

finish(node) = work already there + load of the checkpoint if it will be cold there + what must leave for it, as far as
others want that + this run's own work, each in seconds. One cold load costs as much as 30-100 pictures of a turbo model,
and a model that is thrown out has to be loaded again by somebody: so both belong into the sum.

The pick is the node where the run is done first, whether or not that node has a place now. A run whose node is full waits
in the router: a node that will be free in a moment beats one that is free and would have to load.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import NamedTuple

from common.node_api import MemoryLimit
from router.costs import Cost, Kind

NO_MODEL = "does not have the model"
"""Why a node refuses that was never told of a run's model, or is no more."""
SHARE_OF_RUNNING = 0.05
"""A run at its predicted end is taken to need this share of its prediction still: predictions are means, and half are late."""


Build = tuple[str, ...]


class Health(StrEnum):
    """The router's verdict on a node. Only `online` takes runs."""

    PENDING = "pending"
    ONLINE = "online"
    ERROR = "error"
    OFFLINE = "offline"
    DRAINING = "draining"


class Ask(NamedTuple):
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
    pictures: int = 1
    kind: Kind = ""
    """What its work is measured under."""
    build: Build = ()
    """Of the nodes that may take it: those of a request's other parts. Empty for any."""
    tried: frozenset[str] = frozenset()
    """Ids of nodes that already failed under this run."""


@dataclass(frozen=True, slots=True)
class Offer:
    """One model at one node."""

    tasks: frozenset[str]
    pace: float
    """Seconds for a megapixel-step, of work that nothing more is known of."""
    load_s: float
    memory_bytes: int = 0
    places: int = 1_000_000
    """Runs the node may hold for one more of this model to be sent, where that is less than the node's own places."""
    loras: frozenset[str] = frozenset()
    extras: frozenset[str] = frozenset()
    limits: Mapping[str, MemoryLimit] = field(default_factory=dict)
    """By task: what the node has found out about the pictures its memory suffices for."""
    unavailable: str | None = None
    """Why it cannot be had there at present."""
    costs: Mapping[Kind, Cost] = field(default_factory=dict)
    """What was measured of its work; knows a cost for every kind where it knows any."""
    build: Build = ()
    """What its pictures hang on beside the request: nodes that share it make the same ones."""
    guessed: bool = False
    """Nothing was measured of it."""

    def own_s(self, ask: Ask) -> float:
        """Seconds of the run's own work here."""
        return self.costs[ask.kind].of(ask.units, ask.pictures) if self.costs else ask.units * self.pace

    def seconds(self, kind: Kind, units: float, pictures: int) -> float:
        """The same of any work of this kind."""
        return self.costs[kind].of(units, pictures) if self.costs else units * self.pace

    def too_small(self, ask: Ask) -> MemoryLimit | None:
        """The limit of the node's memory that a picture is beyond; None where it may fit."""
        limit = self.limits.get(ask.task)
        return limit if limit is not None and ask.pixels >= limit.too_large_px else None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node as placement sees it: what it offers and what it has taken on. Changes are new candidates."""

    node_id: str
    name: str
    offers: Mapping[str, Offer]
    places: int
    """Runs it may hold: those it runs at once and those that wait there so that it never idles."""
    held: int = 0
    free_at_s: float = 0.0
    """When its work would be done, on the caller's clock."""
    floor_s: float = 0.0
    """What is left of its work at least, however late it is: what waits there, and a share of what runs."""
    resident: tuple[str, ...] = ()
    """Models on the device once all it holds has run, the least recently used first."""
    pinned: frozenset[str] = frozenset()
    """Models that are never evicted."""
    budget_bytes: int | None = None
    """Device memory for weights; None for no bound."""
    max_resident: int | None = None
    away: str | None = None
    """Why it takes no runs at all; None when it does."""

    @property
    def has_place(self) -> bool:
        """Whether a run of some model could be sent now."""
        return self.held < self.places

    def has_place_for(self, model: str) -> bool:
        """Whether a run of this model could be sent now."""
        return self.held < self.places and self.held < self.offers[model].places

    def doing(self, *, held: int, free_at_s: float, floor_s: float, resident: tuple[str, ...]) -> "Candidate":
        """The same node with other work. Written out, as it is made with every run that comes to the node or leaves it."""
        return Candidate(
            self.node_id,
            self.name,
            self.offers,
            self.places,
            held,
            free_at_s,
            floor_s,
            resident,
            self.pinned,
            self.budget_bytes,
            self.max_resident,
            self.away,
        )

    def wait_s(self, now_s: float) -> float:
        """Predicted seconds until its work is done.

        Work that is late is taken to need as long again as it is late: a node that hangs so loses its runs to others.
        """
        left_s = self.free_at_s - now_s
        if left_s >= self.floor_s:
            return left_s
        return self.floor_s - min(0.0, left_s) if self.held else 0.0


class Outlook(IntEnum):
    """How good the prospects of a run without a place are: the best of what any node offers."""

    NONE = 0
    """No node could take it even if all were well."""
    AWAY = 1
    """A node that could take it is offline, draining, loading, or sits out."""
    FULL = 2
    """A node will take it as soon as it has a place."""


class Terms(NamedTuple):
    """The predicted finish, taken apart; all in seconds."""

    waiting_s: float
    load_s: float
    eviction_s: float
    """Not waited for by this run, but by those whose model leaves: it weighs in the choice and is left out of the ETA."""
    own_s: float

    @property
    def finish_s(self) -> float:
        """Seconds from now until the run is done."""
        return self.waiting_s + self.load_s + self.own_s

    @property
    def cost_s(self) -> float:
        """What the pick goes by."""
        return self.waiting_s + self.load_s + self.eviction_s + self.own_s


class Placement(NamedTuple):
    """The pick, or why every node was turned away."""

    node_id: str | None
    """Where the run would finish first; None when no node can take it."""
    has_place: bool
    """Whether that node can be sent the run now."""
    terms: Terms | None
    turned_away: Mapping[str, str] = MappingProxyType({})
    """name of node -> why; told only where none can take it, as every run that waits is placed again and again"""
    outlook: Outlook = Outlook.FULL
    fits_px: int | None = None
    """Area of the largest picture that nodes turned away for their memory would take; None where there are none of them."""


Want = Callable[[str], float]
"""How much a model is wanted elsewhere once it leaves a node: 0, not at all, to 1, at once."""


def place(ask: Ask, candidates: Collection[Candidate], *, now_s: float, want: Want) -> Placement:
    """The node where `ask` would finish first; ties go to the one that holds fewer runs, then by name.

    now_s: on the clock of `free_at_s`.
    """
    best = _cheapest(ask, candidates, now_s, want)
    if best is not None:
        return Placement(best.node_id, best.has_place_for(ask.model), terms_of(ask, best, now_s=now_s, want=want))
    refused = [(candidate.name, *why) for candidate in candidates if (why := refusal(ask, candidate)) is not None]
    outlook = max((each for _, each, _ in refused), default=Outlook.NONE)
    offers = [candidate.offers[ask.model] for candidate in candidates if ask.model in candidate.offers]
    limits = [limit.fits_px for offer in offers if (limit := offer.too_small(ask)) is not None]
    turned_away = {name: why for name, _, why in refused}
    return Placement(None, False, None, turned_away, outlook, max(limits, default=None))


def _cheapest(ask: Ask, candidates: Iterable[Candidate], now_s: float, want: Want) -> Candidate | None:
    """The candidate of the least cost; None when all refuse.

    Written out instead of calling `refusal` and `terms_of`, which a test holds it to: over a thousand nodes the calls alone
    would take longer than a pick may.
    """
    model, task, units, loras, extras, tried = ask.model, ask.task, ask.units, ask.loras, ask.extras, ask.tried
    kind, pictures, build = ask.kind, ask.pictures, ask.build
    best: Candidate | None = None
    best_s = math.inf
    for candidate in candidates:
        cost_s = 0.0
        if candidate.held:
            # First of all: on a busy fleet most nodes are further from being free than the best is from being done.
            left_s = candidate.free_at_s - now_s
            cost_s = left_s if left_s >= candidate.floor_s else candidate.wait_s(now_s)
            if cost_s > best_s:
                continue
        offer = candidate.offers.get(model)
        if offer is None:
            continue
        cold = model not in candidate.resident
        if cold:
            # Before all else that is asked of a node: where some have the model on their device, loading it is out of question.
            cost_s += offer.load_s
            if cost_s > best_s:
                continue
        if candidate.away is not None or offer.unavailable is not None or task not in offer.tasks:
            continue
        if (loras and not loras <= offer.loras) or (extras and not extras <= offer.extras):
            continue
        if build and build != offer.build:
            continue
        if (tried and candidate.node_id in tried) or (offer.limits and offer.too_small(ask) is not None):
            continue
        costs = offer.costs
        if costs:
            cost = costs[kind]
            cost_s += units * cost.step_s + pictures * cost.picture_s
        else:
            cost_s += units * offer.pace
        if cost_s > best_s:
            continue
        if cold:
            if _too_large(offer, candidate):
                continue
            cost_s += eviction_s(model, candidate, want)
        if cost_s < best_s or (cost_s == best_s and best is not None and _before(candidate, best)):
            best, best_s = candidate, cost_s
    return best


def _before(one: Candidate, other: Candidate) -> bool:
    return (one.held, one.name, one.node_id) < (other.held, other.name, other.node_id)


def _too_large(offer: Offer, candidate: Candidate) -> bool:
    return candidate.budget_bytes is not None and offer.memory_bytes > candidate.budget_bytes


def terms_of(ask: Ask, candidate: Candidate, *, now_s: float, want: Want) -> Terms:
    """The predicted finish at a node that does not refuse."""
    offer, cold = candidate.offers[ask.model], ask.model not in candidate.resident
    load_s, evicted_s = (offer.load_s, eviction_s(ask.model, candidate, want)) if cold else (0.0, 0.0)
    return Terms(candidate.wait_s(now_s), load_s, evicted_s, offer.own_s(ask))


def refusal(ask: Ask, candidate: Candidate) -> tuple[Outlook, str] | None:
    """Why a node cannot take the run, and what prospects that leaves; None when it can, if not at once."""
    if candidate.node_id in ask.tried:
        return Outlook.NONE, "failed under this run before"
    if candidate.away is not None:
        return Outlook.AWAY, candidate.away
    offer = candidate.offers.get(ask.model)
    if offer is None:
        return Outlook.NONE, NO_MODEL
    if ask.task not in offer.tasks:
        return Outlook.NONE, f"the model makes no {ask.task} there"
    if missing := ask.loras.difference(offer.loras):
        return Outlook.NONE, f"does not have the LoRA {min(missing)!r}"
    if ask.build and ask.build != offer.build:
        return Outlook.NONE, "may make it otherwise than the request's other parts are made"
    if (limit := offer.too_small(ask)) is not None:
        return Outlook.NONE, f"has not the memory for more than {limit.fits_px:,} pixels"
    if missing := ask.extras.difference(offer.extras):
        return Outlook.NONE, f"does not have {min(missing)}"
    if ask.model not in candidate.resident and _too_large(offer, candidate):
        return Outlook.NONE, f"the weights need {offer.memory_bytes:,} bytes of {candidate.budget_bytes:,}"
    if offer.unavailable is not None:
        return Outlook.AWAY, offer.unavailable
    return None


def eviction_s(model: str, candidate: Candidate, want: Want) -> float:
    """Seconds of loading that others will have to wait for when `model` comes onto the device."""
    victims = _victims(model, candidate.resident, candidate)
    return sum(candidate.offers[victim].load_s * want(victim) for victim in victims if victim in candidate.offers)


def with_run(ask: Ask, candidate: Candidate, *, now_s: float) -> Candidate:
    """The node once it has taken on `ask` as well."""
    offer = candidate.offers[ask.model]
    took_s = offer.own_s(ask) + (0.0 if ask.model in candidate.resident else offer.load_s)
    return candidate.doing(
        held=candidate.held + 1,
        free_at_s=now_s + candidate.wait_s(now_s) + took_s,
        floor_s=candidate.floor_s + took_s if candidate.held else SHARE_OF_RUNNING * took_s,
        resident=resident_with(ask.model, candidate.resident, candidate),
    )


def with_claim(ask: Ask, candidate: Candidate, *, now_s: float) -> Candidate:
    """The node with `ask` waiting for it in the router: those that come after wait for that work too."""
    offer = candidate.offers[ask.model]
    took_s = offer.own_s(ask) + (0.0 if ask.model in candidate.resident else offer.load_s)
    return candidate.doing(
        held=candidate.held,
        free_at_s=now_s + candidate.wait_s(now_s) + took_s,
        floor_s=candidate.floor_s + took_s,
        resident=candidate.resident,
    )


def residents_after(models: Iterable[str], candidate: Candidate) -> tuple[str, ...]:
    """What is on the device after runs on `models`, in their order: as `Candidate.resident`."""
    resident = candidate.resident
    for model in models:
        resident = resident_with(model, resident, candidate)
    return resident


def resident_with(model: str, resident: tuple[str, ...], candidate: Candidate) -> tuple[str, ...]:
    """The same after one more run, on `model`. resident: what was there before it, in the place of the candidate's."""
    if model in resident:
        at = resident.index(model)
        return resident if at == len(resident) - 1 else (*resident[:at], *resident[at + 1 :], model)
    gone = _victims(model, resident, candidate)
    return (*(each for each in resident if each not in gone), model)


def _victims(model: str, resident: Sequence[str], candidate: Candidate) -> list[str]:
    """Who leaves when `model` comes, the least recently used first, as residency does it on the node."""
    victims: list[str] = []
    count = len(resident)
    if candidate.max_resident is None and candidate.budget_bytes is None:
        return victims
    used_bytes = _bytes_of(model, candidate) + sum(_bytes_of(each, candidate) for each in resident)
    for each in resident:
        crowded = candidate.max_resident is not None and count >= candidate.max_resident
        if not crowded and (candidate.budget_bytes is None or used_bytes <= candidate.budget_bytes):
            break
        if each not in candidate.pinned:
            victims.append(each)
            count -= 1
            used_bytes -= _bytes_of(each, candidate)
    return victims


def _bytes_of(model: str, candidate: Candidate) -> int:
    offer = candidate.offers.get(model)
    return 0 if offer is None else offer.memory_bytes
