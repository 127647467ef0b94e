"""Counters and histograms that cost a call an event; the registry of prometheus-client collects them.

That library's own cost a dozen: each looks for its series, and adds to it, under locks. Here all events are told on the event
loop, and need none. What a scrape shows is the same to the letter.
"""

import math
import os
import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.samples import Exemplar

Labels = tuple[str, ...]
"""Values of a series' labels, in the order of their names."""

SHOWS_CREATED = os.environ.get("PROMETHEUS_DISABLE_CREATED_SERIES", "").lower() not in ("true", "1", "t")
"""Whether since when each series counts is exposed beside it: the library's own switch."""


@dataclass(slots=True)
class _Count:
    value: float = 0.0
    created_at: float = field(default_factory=time.time)


class Counted:
    """A counter. Without labels it shows 0 from the start; with some, each series from its first event on."""

    def __init__(self, name: str, told: str, labels: Sequence[str] = (), *, registry: CollectorRegistry) -> None:
        self._name, self._told, self._labels = name, told, labels
        self._series: dict[Labels, _Count] = {} if labels else {(): _Count()}
        registry.register(self)

    def count(self, *labels: str, by: float = 1.0) -> None:
        """So many more of the series with these labels."""
        series = self._series.get(labels)
        if series is None:
            series = self._series[_checked(labels, self._labels)] = _Count()
        series.value += by

    def describe(self) -> Iterable[Metric]:
        """What the registry needs to know before anything is counted."""
        return [CounterMetricFamily(self._name, self._told, labels=self._labels)]

    def collect(self) -> Iterable[Metric]:
        """For a scrape."""
        family = CounterMetricFamily(self._name, self._told, labels=self._labels)
        for labels, series in self._series.items():
            family.add_metric(labels, series.value, created=series.created_at if SHOWS_CREATED else None)
        return [family]


@dataclass(slots=True)
class _Spread:
    counts: list[int]
    """By bucket, each without those below it."""
    exemplars: list[tuple[str, float, float] | None]
    """By bucket: the run that was observed last, its value, and when."""
    total: float = 0.0
    created_at: float = field(default_factory=time.time)


class Measured:
    """A histogram. Without labels it shows zeros from the start; with some, each series from its first event on."""

    def __init__(
        self, name: str, told: str, labels: Sequence[str] = (), *, buckets: Sequence[float], registry: CollectorRegistry
    ) -> None:
        """buckets: their upper bounds, rising, below a million; one for all that is beyond is added."""
        self._name, self._told, self._labels = name, told, labels
        self._bounds = [*buckets, math.inf]
        self._named = [*(str(float(bound)) for bound in buckets), "+Inf"]
        self._series: dict[Labels, _Spread] = {} if labels else {(): self._empty()}
        registry.register(self)

    def _empty(self) -> _Spread:
        return _Spread([0] * len(self._bounds), [None] * len(self._bounds))

    def observe(self, value: float, *labels: str, run_id: str | None = None) -> None:
        """One more of the series with these labels. run_id: its exemplar, kept until the next in the same bucket."""
        series = self._series.get(labels)
        if series is None:
            series = self._series[_checked(labels, self._labels)] = self._empty()
        bucket = bisect_left(self._bounds, value)
        series.counts[bucket] += 1
        series.total += value
        if run_id is not None:
            series.exemplars[bucket] = (run_id, value, time.time())

    def describe(self) -> Iterable[Metric]:
        """What the registry needs to know before anything is observed."""
        return [HistogramMetricFamily(self._name, self._told, labels=self._labels)]

    def collect(self) -> Iterable[Metric]:
        """For a scrape."""
        family = HistogramMetricFamily(self._name, self._told, labels=self._labels)
        for labels, series in self._series.items():
            family.add_metric(labels, [*self._buckets(series)], series.total)
            if SHOWS_CREATED:
                named = dict(zip(self._labels, labels, strict=True))
                family.add_sample(f"{self._name}_created", named, series.created_at)
        return [family]

    def _buckets(self, series: _Spread) -> Iterable[tuple[str, float] | tuple[str, float, Exemplar]]:
        for bound, count, last in zip(self._named, accumulate(series.counts), series.exemplars, strict=True):
            if last is None:
                yield bound, count
            else:
                run_id, value, at = last
                yield bound, count, Exemplar({"run_id": run_id}, value, at)


def _checked(labels: Labels, names: Sequence[str]) -> Labels:
    if len(labels) != len(names):
        raise ValueError(f"These are no values of the labels {', '.join(names)}: {labels}")
    return labels
