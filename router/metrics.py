"""The router's figures for Prometheus. Labels: node names, models a node has told of, and outcomes from fixed lists."""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Gauge

from common.counting import Counted, Measured
from common.metrics import SECONDS_BUCKETS, HttpMetrics

RATIO_BUCKETS = (0.25, 0.5, 0.67, 0.8, 0.9, 1.0, 1.1, 1.2, 1.5, 2.0, 4.0)
OUTCOMES = (
    "unreachable",
    "connection_lost",
    "busy",
    "out_of_memory",
    "insufficient_memory",
    "worker_lost",
    "worker_hung",
)
"""Causes of a failed try that are metrics labels; all others are `node_error`."""


class RouterMetrics:
    """All of them, on a registry of their own: two apps in one process do not meet."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.http = HttpMetrics(self.registry, "router")
        self._attempts = Counted("aquatint_attempts", "Tries at nodes.", ["node", "outcome"], registry=self.registry)
        self._retries = Counted(
            "aquatint_retries",
            "Tries of a run beyond its first, and those the budget refused.",
            ["outcome"],
            registry=self.registry,
        )
        self._runs = Counted("aquatint_runs", "Runs that ended.", ["model", "outcome"], registry=self.registry)
        self._split = Counted(
            "aquatint_split_runs", "Runs that were made in parts, by several nodes.", ["outcome"], registry=self.registry
        )
        self._seconds = Measured(
            "aquatint_run_seconds",
            "From acceptance to the answer's first byte.",
            ["model"],
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self._wait = Measured(
            "aquatint_queue_wait_seconds", "Time spent waiting for a node.", buckets=SECONDS_BUCKETS, registry=self.registry
        )
        self._prediction = Measured(
            "aquatint_prediction_ratio",
            "Seconds that runs took over the seconds predicted. of: node, from being sent to the answer; answer, in all.",
            ["of"],
            buckets=RATIO_BUCKETS,
            registry=self.registry,
        )
        self._depth = Gauge("aquatint_queue_depth", "Runs waiting for a node.", registry=self.registry)
        self._predicted = Gauge(
            "aquatint_queue_predicted_seconds",
            "Predicted seconds until a run accepted now would get its place. What autoscalers go by.",
            registry=self.registry,
        )
        self._catalog_up = Gauge("aquatint_catalog_up", "1 while the catalog answers.", registry=self.registry)
        self._node_up = Gauge("aquatint_node_up", "1 while a node is online.", ["node"], registry=self.registry)
        self._node_runs = Gauge(
            "aquatint_node_in_flight", "Runs sent to a node and unanswered.", ["node"], registry=self.registry
        )
        self._node_held_off = Gauge(
            "aquatint_node_held_off",
            "Models that a node is given no runs on: it failed under them, or comes and goes.",
            ["node"],
            registry=self.registry,
        )

        self._jobs = Gauge("aquatint_jobs", "Long jobs that the catalog knows.", ["kind", "state"], registry=self.registry)

    def attempt(self, node: str, outcome: str) -> None:
        """One try at one node ended."""
        self._attempts.count(node, outcome)

    def retry(self, outcome: str) -> None:
        """A run was to be tried once more: made, or refused."""
        self._retries.count(outcome)

    def run(self, model: str, outcome: str, seconds: float, *, run_id: str | None = None) -> None:
        """One run ended: succeeded, refused, failed, cancelled or cached."""
        self._runs.count(model, outcome)
        if outcome == "succeeded":
            self._seconds.observe(seconds, model, run_id=run_id)

    def split(self, outcome: str) -> None:
        """One run that was made in parts ended, as for `run`, or its parts were given up: as_one."""
        self._split.count(outcome)

    def waited(self, seconds: float, run_id: str) -> None:
        """A run found its node."""
        self._wait.observe(seconds, run_id=run_id)

    def predicted(self, of: str, predicted_s: float, took_s: float) -> None:
        """A run whose end was predicted has ended. of: what was predicted; see the metric."""
        if predicted_s > 0:
            self._prediction.observe(took_s / predicted_s, of)

    def watch_queue(self, length: Callable[[], float], predicted_s: Callable[[], float]) -> None:
        """Read the queue's length, and what it means in seconds, at each scrape."""
        self._depth.set_function(length)
        self._predicted.set_function(predicted_s)

    def show(self, nodes: dict[str, tuple[bool, int, int]], jobs: Mapping[tuple[str, str], int], *, catalog_up: bool) -> None:
        """name -> (online, in flight, models held off); nodes that are gone leave no series behind. jobs: how many of each
        kind in each state."""
        self._catalog_up.set(catalog_up)
        self._jobs.clear()
        for of, count in jobs.items():
            self._jobs.labels(*of).set(count)
        self._node_up.clear()
        self._node_runs.clear()
        self._node_held_off.clear()
        for name, (online, in_flight, held_off) in nodes.items():
            self._node_up.labels(name).set(online)
            self._node_runs.labels(name).set(in_flight)
            self._node_held_off.labels(name).set(held_off)
