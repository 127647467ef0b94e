"""What arrives: runs of models whose costs lie a hundredfold apart, in bursts; or those of a recorded trace."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

MEGAPIXELS = ((0.25, 20), (1.0, 60), (1.5, 10), (2.25, 10))
"""Sizes of pictures and how often each is asked for."""
Counts = tuple[tuple[int, int], ...]
COUNTS: Counts = ((1, 80), (2, 10), (4, 10))
"""Pictures of one request, likewise."""
BURST_S, CYCLE_S = 100.0, 300.0
MIN_WORK_S, MAX_WORK_S = 0.3, 120.0


@dataclass(frozen=True, slots=True)
class SimModel:
    """seconds: for one picture of a megapixel, on a node of speed 1. popularity: its share of arrivals, in any unit."""

    name: str
    seconds: float
    load_s: float
    popularity: float


SIX = (
    SimModel("turbo", 0.5, 10, 40),
    SimModel("sdxl", 3.0, 15, 25),
    SimModel("sd35", 6.0, 30, 12),
    SimModel("flux", 10.0, 40, 15),
    SimModel("qwen", 20.0, 60, 5),
    SimModel("edit", 15.0, 60, 3),
)


def many_models(count: int) -> tuple[SimModel, ...]:
    """The six again and again under other names, the later the less popular (Zipf)."""
    return tuple(
        SimModel(f"{SIX[i % 6].name}-{i}", SIX[i % 6].seconds, SIX[i % 6].load_s, SIX[i % 6].popularity / (1 + i // 6))
        for i in range(count)
    )


@dataclass(slots=True, eq=False)
class Arrival:
    """One request. work_s: what it takes on a node of speed 1; estimate_s: what routers believe that to be."""

    at_s: float
    model: str
    units: float
    work_s: float
    estimate_s: float
    router: int = 0
    key: str = "one"
    done_s: float = -1.0
    pictures: int = 1
    part_of: "Arrival | None" = None
    told_s: float | None = None
    """Seconds to its end, as foreseen when it came; None where nobody looked."""

    def shared(self, pictures: int) -> "Arrival":
        """So many of its pictures as a request of their own."""
        share = pictures / self.pictures
        work_s, estimate_s = self.work_s * share, self.estimate_s * share
        units = self.units * share
        return replace(self, units=units, work_s=work_s, estimate_s=estimate_s, pictures=pictures, part_of=self)

    def done(self, now_s: float) -> None:
        """It has ended, and with its last part the whole."""
        self.done_s = now_s
        if self.part_of is not None:
            self.part_of.done_s = max(self.part_of.done_s, now_s)


def synthetic(
    models: Sequence[SimModel],
    *,
    count: int,
    work_per_s: float,
    seed: int,
    estimate_sigma: float = 0.25,
    burst: float = 0.5,
    routers: int = 1,
    counts: Counts = COUNTS,
) -> list[Arrival]:
    """`count` arrivals that bring `work_per_s` seconds of work (on speed 1) each second, in Poisson bursts.

    estimate_sigma: spread (log-normal) of estimates about the truth; 0.7 is a factor of two. burst: how much the rate rises
    for a third of the time, so that it is the same on average.
    """
    rng, doors = random.Random(seed), random.Random(seed)
    by_name = {model.name: model for model in models}
    names = rng.choices(list(by_name), [model.popularity for model in models], k=count)
    arrivals = []
    for name in names:
        megapixels = _one_of(rng, MEGAPIXELS)
        units, pictures = megapixels * min(4.0, max(0.3, rng.lognormvariate(0, 0.35))), _one_of(rng, counts)
        units *= pictures
        work_s = min(MAX_WORK_S, max(MIN_WORK_S, by_name[name].seconds * units))
        estimate_s = work_s * rng.lognormvariate(0, estimate_sigma)
        arrival = Arrival(0.0, name, units, work_s, estimate_s, doors.randrange(routers))
        arrival.pictures = int(pictures)
        arrivals.append(arrival)
    rate = work_per_s * count / sum(arrival.work_s for arrival in arrivals)
    at_s = 0.0
    for arrival in arrivals:
        at_s += rng.expovariate(rate * (1 + burst if at_s % CYCLE_S < BURST_S else 1 - burst / 2))
        arrival.at_s = at_s
    return arrivals


def _one_of(rng: random.Random, weighted: Sequence[tuple[float, int]]) -> float:
    return rng.choices([value for value, _ in weighted], [weight for _, weight in weighted])[0]


class TraceRefused(ValueError):
    """A trace that cannot be replayed; names the line."""


def read_trace(path: Path, *, seed: int, estimate_sigma: float, routers: int) -> tuple[tuple[SimModel, ...], list[Arrival]]:
    """A recorded trace: JSON lines `{"at_s", "model", "work_s", "load_s"?, "key"?}`, work on a node of speed 1.

    Raises: TraceRefused.
    """
    rng, doors = random.Random(seed), random.Random(seed)
    arrivals: list[Arrival] = []
    load_s: dict[str, float] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            told: dict[str, Any] = json.loads(line)
            name, work_s = str(told["model"]), float(told["work_s"])
            load_s[name] = float(told.get("load_s", load_s.get(name, 20.0)))
            estimate_s = work_s * rng.lognormvariate(0, estimate_sigma)
            arrival = Arrival(float(told["at_s"]), name, work_s, work_s, estimate_s, doors.randrange(routers))
            arrival.key = str(told.get("key", "one"))
        except (ValueError, KeyError, TypeError) as error:
            raise TraceRefused(f"{path}:{number}: {type(error).__name__}: {error}") from error
        arrivals.append(arrival)
    if not arrivals:
        raise TraceRefused(f"{path} has no arrivals.")
    arrivals.sort(key=lambda arrival: arrival.at_s)
    return tuple(SimModel(name, 1.0, seconds, 1.0) for name, seconds in load_s.items()), arrivals
