"""The node's figures for Prometheus. Labels: models of this node, and phases and outcomes from fixed lists."""

from collections import Counter as Tally
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Gauge

from common.counting import Counted, Measured
from common.metrics import SECONDS_BUCKETS, HttpMetrics, present_run
from common.node_api import DeviceStatus, JobPhase, JobStatus
from node.worker.orders import Memory


class NodeMetrics:
    """All of them, on a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.http = HttpMetrics(self.registry, "node")
        self._jobs = Gauge("aquatint_node_jobs", "Runs held.", ["phase"], registry=self.registry)
        self._seconds = Measured(
            "aquatint_node_generation_seconds",
            "Seconds of a run, by phase: load, encode, denoise, decode, write, total.",
            ["model", "phase"],
            buckets=SECONDS_BUCKETS,
            registry=self.registry,
        )
        self._loads = Counted("aquatint_node_model_loads", "Loads.", ["model", "outcome"], registry=self.registry)
        self._images = Counted("aquatint_node_images", "Pictures made.", ["model"], registry=self.registry)
        self._restarts = Counted("aquatint_node_worker_restarts", "Workers started after the first.", registry=self.registry)
        self._restarts_shown = self._replacements_shown = 0
        self._replacements = Counted(
            "aquatint_node_worker_replacements",
            "Workers replaced between runs, for they held memory without use.",
            registry=self.registry,
        )
        self._held = Gauge("aquatint_node_worker_memory_bytes", "Memory of the worker.", ["kind"], registry=self.registry)
        self._ready = Gauge("aquatint_node_ready", "1 while this node takes runs.", registry=self.registry)
        self._resident = Gauge("aquatint_node_models_resident", "Models loaded.", registry=self.registry)
        self._memory = Gauge("aquatint_node_device_memory_bytes", "Device memory.", ["kind"], registry=self.registry)

    def made(self, model: str, images: int, timings_s: dict[str, float]) -> None:
        """One run ended well."""
        self._images.count(model, by=images)
        run_id = present_run()
        for phase, seconds in timings_s.items():
            self._seconds.observe(seconds, model, phase, run_id=run_id)

    def loaded(self, model: str, succeeded: bool) -> None:
        """One load ended."""
        self._loads.count(model, "succeeded" if succeeded else "failed")

    def show(
        self,
        *,
        device: DeviceStatus,
        jobs: Iterable[JobStatus],
        restarts: int,
        replacements: int,
        held: Memory | None,
        ready: bool,
        resident: int,
    ) -> None:
        """What is read at each scrape. held: memory of the worker; resident: how many models are loaded."""
        self._ready.set(ready)
        self._resident.set(resident)
        phases = Tally(job.phase for job in jobs)
        for phase in JobPhase:
            self._jobs.labels(phase.value).set(phases[phase])
        self._restarts.count(by=restarts - self._restarts_shown)
        self._replacements.count(by=replacements - self._replacements_shown)
        self._restarts_shown, self._replacements_shown = restarts, replacements
        self._held.labels("main").set(0 if held is None else held.main_bytes)
        self._held.labels("device").set(0 if held is None else held.device_bytes)
        self._memory.labels("total").set(device.memory_total_bytes)
        self._memory.labels("free").set(device.memory_free_bytes)
