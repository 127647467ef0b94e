"""What work costs at each node, learned from what nodes tell of their runs and loads. Pure but for the clock it is given.

Of each kind and size of work: seconds for a megapixel-step, and seconds for each picture besides (encoding, decoding,
writing), which weigh the more the fewer steps are made. Sizes are buckets of half an octave of area: within one, time goes
by steps, while from 512 to 1024 px it grows by 2.4 on some devices and by 5 on others, whatever the pixels say.

Estimates are kept in the catalog, so that a router that starts knows what those before it learned. Nodes tell the same to
all routers, which therefore learn the same.

What nodes tell is also taken together by device, for what their work is likely to cost where nobody has measured it yet
(`likely.py`).
"""

import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import NamedTuple

from common.catalog import CostRecord
from common.clock import utc_now
from common.node_api import UNKNOWN, DeviceStatus, NodeStatus, RunTook

Kind = str
"""What is alike in its costs, as `kind_of` says it: text, whose hash is computed once, as a pick looks it up for every node."""

WEIGHT = 0.2
"""Of a new measurement; the first ones count evenly."""
SPREAD_WEIGHT = 0.3
START_SPREAD = 0.25
LEAST_SPREAD = 0.05
"""Where all measurements agree, one that differs by 10 % is no outlier."""
BOUND = 2.0
"""Spreads beyond which a measurement counts as if it lay there."""
_RHO_SCALE = 2.52
"""Makes the bounded loss of normal residuals 1 on average, at this bound."""
LEAST_S = 1e-6
TERMS = STEP, PICTURE, LOAD = "step", "picture", "load"


@lru_cache(maxsize=1024)
def bucket_of(pixels: int) -> int:
    """The bucket of a picture's area: 0 about 1024x1024, -4 about 512x512. Half an octave each."""
    return round(2 * math.log2(max(1, pixels) / 1024**2))


def kind_of(work: str, size: int) -> Kind:
    """work: in the words of `common.node_api.work_words`. size: a bucket."""
    return sys.intern(f"{work}@{size}")


def _parts(kind: Kind) -> tuple[str, int]:
    work, _, size = kind.rpartition("@")
    return work, int(size or 0)


@dataclass(frozen=True, slots=True)
class Level:
    """A running estimate of a time, in its logarithm, for times differ by factors.

    Robust exponential smoothing: a measurement is taken in as far as it lies within two spreads of what was expected, and
    the spread follows a bounded loss, so that one run of ten times the length changes next to nothing, while a lasting
    change is followed within a dozen runs (Gelper, Fried, Croux: Robust forecasting with exponential and Holt-Winters
    smoothing, Journal of Forecasting 29, 2010).
    """

    log_s: float
    spread: float = START_SPREAD
    count: int = 1

    @classmethod
    def first(cls, measured_s: float) -> "Level":
        """Of the first measurement."""
        return cls(math.log(max(measured_s, LEAST_S)))

    @property
    def seconds(self) -> float:
        """What is expected next."""
        return math.exp(self.log_s)

    def after(self, measured_s: float) -> "Level":
        """With one more measurement."""
        log_s = math.log(max(measured_s, LEAST_S))
        if self.count == 1:
            # The first run on a model also pays for warming up: of two, the quicker one says more.
            return Level(min(self.log_s, log_s), self.spread, 2)
        off = min(BOUND, max(-BOUND, (log_s - self.log_s) / self.spread))
        loss = _RHO_SCALE * (1 - (1 - (off / BOUND) ** 2) ** 3)
        spread = max(LEAST_SPREAD, self.spread * math.sqrt(SPREAD_WEIGHT * loss + 1 - SPREAD_WEIGHT))
        weight = max(WEIGHT, 1 / (self.count + 1))
        return Level(self.log_s + weight * off * self.spread, spread, self.count + 1)


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one kind and size of work. step_s: for a megapixel-step; picture_s: for each picture besides."""

    step_s: float
    picture_s: float = 0.0

    def of(self, units: float, pictures: int) -> float:
        """Seconds of so many megapixel-steps in so many pictures."""
        return units * self.step_s + pictures * self.picture_s


class Costs(dict[Kind, Cost]):
    """Of all work on one model. What was not measured costs as what is most like it: the same kind of the nearest size, else
    another kind, else as the node says of the model as a whole."""

    def __init__(self, measured: Mapping[Kind, Cost], whole: Cost) -> None:
        super().__init__(measured)
        self._measured = measured
        self._whole = whole

    def __missing__(self, kind: Kind) -> Cost:
        work, size = _parts(kind)

        def unlike(other: Kind) -> tuple[bool, int]:
            other_work, other_size = _parts(other)
            return other_work != work, abs(other_size - size)

        alike = min(self._measured, key=unlike, default=None)
        self[kind] = cost = self._whole if alike is None else self._measured[alike]
        return cost


@dataclass(frozen=True, slots=True)
class Learned:
    """What was learned of one model at one node."""

    costs: Mapping[Kind, Cost] = field(default_factory=dict)
    load_s: float | None = None


class Device(NamedTuple):
    """What nodes that take as long for the same work have in common. kind: as `DeviceStatus.kind`."""

    kind: str
    name: str

    @classmethod
    def of(cls, status: DeviceStatus) -> "Device":
        """As a node tells of it."""
        return cls(status.kind, status.name)


_Key = tuple[str, str, str, int]
"""Model, kind of work, term, bucket."""
_Levels = dict[_Key, Level]


NOTHING_LEARNED: Mapping[str, Learned] = {}
"""One for all nodes of which nothing is known: who asks again sees that nothing has changed."""


@dataclass(slots=True)
class _Node:
    """What is known of one node."""

    levels: _Levels = field(default_factory=dict)
    learned: Mapping[str, Learned] = field(default_factory=dict)
    """The same, as placement reads it; by model."""
    told: frozenset[str] = frozenset()
    """Runs and loads in what it said last."""
    changed: dict[_Key, datetime] = field(default_factory=dict)
    """Estimates that are not written down as they are, and when each was last measured."""
    device: Device | None = None
    """None while it has not told."""


class CostBook:
    """All of it, by node."""

    def __init__(self, known: Iterable[CostRecord] = ()) -> None:
        self._nodes: dict[str, _Node] = {}
        self._devices: dict[Device, _Levels] = {}
        self.lessons = 0
        """Grows with what is learned of any device: at the first measurement of something, the second, the fourth and so on."""
        for each in known:
            node = self._nodes.setdefault(each.node_id, _Node())
            node.levels[each.model, each.work, each.term, each.size] = Level(each.log_s, each.spread, each.count)
        for node in self._nodes.values():
            node.learned = _learned(node.levels)

    def of(self, node_id: str) -> Mapping[str, Learned]:
        """What was learned of a node, by model."""
        node = self._nodes.get(node_id)
        return NOTHING_LEARNED if node is None else node.learned

    def hear(self, node_id: str, status: NodeStatus, now: datetime | None = None) -> None:
        """Take in what a node tells of its latest runs and loads; what it told before counts once."""
        node = self._nodes.setdefault(node_id, _Node())
        self._meet(node, Device.of(status.device))
        told = frozenset([each.run_id for each in status.runs_took] + [each.id for each in status.loads_took])
        if told == node.told:
            return
        moment = now or utc_now()
        for run in status.runs_took:
            if run.run_id not in node.told:
                for key, measured_s in _measured(run):
                    self._take(node, key, measured_s, moment)
        for load in status.loads_took:
            if load.id not in node.told:
                self._take(node, (load.model, "", LOAD, 0), load.load_s, moment)
        node.told, node.learned = told, _learned(node.levels)

    def _meet(self, node: _Node, device: Device) -> None:
        """What is known of a node is known of its device, unless more was seen of the same on others."""
        if device == node.device or device.kind == UNKNOWN:
            return
        node.device = device
        known = self._devices.setdefault(device, {})
        for key, level in node.levels.items():
            if key not in known or known[key].count < level.count:
                known[key] = level
                self.lessons += 1

    def _take(self, node: _Node, key: _Key, measured_s: float, moment: datetime) -> None:
        node.levels[key] = _after(node.levels.get(key), measured_s)
        node.changed[key] = moment
        if node.device is not None:
            levels = self._devices[node.device]
            levels[key] = _after(levels.get(key), measured_s)
            self.lessons += levels[key].count.bit_count() == 1

    def device(self, node_id: str) -> Device | None:
        """What a node runs on; None while it has not told."""
        node = self._nodes.get(node_id)
        return None if node is None else node.device

    def by_device(self) -> dict[Device, dict[str, Learned]]:
        """What was learned of all nodes with the same device together, by model; of devices that are gone as well."""
        return {device: _learned(levels) for device, levels in self._devices.items()}

    def forget(self, node_id: str) -> None:
        """A node that is no longer registered."""
        self._nodes.pop(node_id, None)

    def changes(self) -> list[CostRecord]:
        """What is to be written down. Call `written` with it once it is."""
        return [
            CostRecord(
                node_id=node_id,
                model=model,
                work=work,
                term=term,
                size=size,
                log_s=level.log_s,
                spread=level.spread,
                count=level.count,
                measured_at=moment,
            )
            for node_id, node in self._nodes.items()
            for (model, work, term, size), moment in node.changed.items()
            for level in [node.levels[model, work, term, size]]
        ]

    def written(self, records: Iterable[CostRecord]) -> None:
        """These are in the catalog; what was learned meanwhile is not."""
        for each in records:
            node, key = self._nodes.get(each.node_id), (each.model, each.work, each.term, each.size)
            if node is not None and node.changed.get(key) == each.measured_at:
                del node.changed[key]


def _measured(run: RunTook) -> Iterator[tuple[_Key, float]]:
    size = bucket_of(run.pixels)
    if run.work_units > 0:
        yield (run.model, run.work, STEP, size), run.steps_s / run.work_units
    yield (run.model, run.work, PICTURE, size), run.rest_s / run.pictures


def _after(level: Level | None, measured_s: float) -> Level:
    return Level.first(measured_s) if level is None else level.after(measured_s)


def _learned(levels: Mapping[_Key, Level]) -> dict[str, Learned]:
    costs: dict[str, dict[Kind, Cost]] = {}
    loads = {model: level.seconds for (model, _, term, _), level in levels.items() if term == LOAD}
    for (model, work, term, size), level in levels.items():
        if term == STEP:
            picture = levels.get((model, work, PICTURE, size))
            cost = Cost(level.seconds, 0.0 if picture is None else picture.seconds)
            costs.setdefault(model, {})[kind_of(work, size)] = cost
    return {model: Learned(costs.get(model, {}), loads.get(model)) for model in {**costs, **loads}}
