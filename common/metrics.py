"""What both processes do alike for Prometheus: one registry an app, bounded labels, buckets that fit pictures.

Durations of runs carry an exemplar, the id of one run that took so long: a run's id is no label, for each would be a series
of its own, but from a slow bucket one wants to come to a run.
"""

import asyncio
from collections.abc import Callable
from time import monotonic

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import choose_encoder
from starlette.requests import Request
from starlette.responses import Response

from common.counting import Counted, Measured
from common.later import Later
from common.logs import bound
from common.version import VERSION

SECONDS_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 60, 120, 300, 600)
"""From a refusal to the longest picture an SDK waits for (600 s)."""
LAG_BUCKETS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
LOOK_AT_LOOP_EVERY_S = 0.5


class HttpMetrics:
    """Requests by route template and status class: a scanner's paths and a client's model names add no series."""

    def __init__(self, registry: CollectorRegistry, process: str) -> None:
        self._requests = Counted(
            f"aquatint_{process}_http_requests", "HTTP answers.", ["method", "route", "status"], registry=registry
        )
        self._seconds = Measured(
            f"aquatint_{process}_http_seconds",
            "Seconds from the request to the end of its answer.",
            ["route"],
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self._lag = Measured(
            f"aquatint_{process}_loop_lag_seconds",
            "How much later than asked the event loop woke: what every other request waits for.",
            buckets=LAG_BUCKETS,
            registry=registry,
        )
        build = Gauge("aquatint_build_info", "1, with the version that runs.", ["version", "process"], registry=registry)
        build.labels(VERSION, process).set(1)

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answer."""
        known = method if method in ("GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS") else "other"
        self._requests.count(known, route, f"{status // 100}xx")
        self._seconds.observe(seconds, route)

    async def watch_loop(self) -> None:
        """Measure the event loop's lag, for ever."""
        while True:
            asked_s = monotonic()
            await asyncio.sleep(LOOK_AT_LOOP_EVERY_S)
            self._lag.observe(max(0.0, monotonic() - asked_s - LOOK_AT_LOOP_EVERY_S))


def present_run() -> str | None:
    """The id of the run that is being carried out just now, for `observe(seconds, run_id=present_run())`."""
    run_id: str | None = bound().get("run_id")
    return run_id


def exposition(registry: CollectorRegistry, request: Request) -> Response:
    """The answer to a scrape, in the format it asks for: only OpenMetrics has exemplars. What the app has put off, it does now,
    so that every answer that was given is told of."""
    later: Later = request.app.state.later
    later.catch_up()
    encode: Callable[[CollectorRegistry], bytes]
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(registry), headers={"content-type": content_type})
