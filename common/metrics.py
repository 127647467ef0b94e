"""What both processes do alike for Prometheus: one registry an app, bounded labels, buckets that fit pictures."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.responses import Response

from common.version import VERSION

SECONDS_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600)
"""From a refusal to the longest picture an SDK waits for (600 s)."""


class HttpMetrics:
    """Requests by route template and status class: a scanner's paths and a client's model names add no series."""

    def __init__(self, registry: CollectorRegistry, process: str) -> None:
        self._requests = Counter(
            f"aquatint_{process}_http_requests", "HTTP answers.", ["method", "route", "status"], registry=registry
        )
        self._seconds = Histogram(
            f"aquatint_{process}_http_seconds",
            "Seconds from the request to the end of its answer.",
            ["route"],
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        build = Gauge("aquatint_build_info", "1, with the version that runs.", ["version", "process"], registry=registry)
        build.labels(VERSION, process).set(1)

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answer."""
        known = method if method in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS") else "other"
        self._requests.labels(known, route, f"{status // 100}xx").inc()
        self._seconds.labels(route).observe(seconds)


def exposition(registry: CollectorRegistry) -> Response:
    """The answer to a scrape."""
    return Response(generate_latest(registry), headers={"content-type": CONTENT_TYPE_LATEST})
