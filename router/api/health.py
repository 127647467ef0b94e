"""/health (the process lives), /ready (send me work), /metrics."""

import time
from collections.abc import Mapping

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse, PlainTextResponse

from common.catalog import JobState
from common.errors import CatalogUnavailable
from common.metrics import exposition
from common.node_api import NodePhase
from common.version import VERSION
from router.jobs.kinds import KINDS
from router.placement import Health
from router.services import ServicesDep

api = APIRouter()


@api.get("/health")
async def health() -> dict[str, str]:
    """Answers whatever else is wrong: a restart would not mend the catalog or the nodes."""
    return {"status": "ok", "version": VERSION}


@api.get("/ready")
async def ready(services: ServicesDep) -> JSONResponse:
    """200 when the catalog answers and at least one node is online, else 503 with the reason."""
    reasons = []
    try:
        await services.catalog.ping()
    except CatalogUnavailable:
        reasons.append("the catalog cannot be reached")
    online = [node for node in services.registry.nodes() if node.health is Health.ONLINE]
    if not online:
        reasons.append("no node is online")
    body = {
        "ready": not reasons,
        "reasons": reasons,
        "nodes_online": len(online),
        # Beside the verdict and not in it: a node's worker that starts again must not take the router out of service.
        "nodes_ready": sum(node.status is not None and node.status.phase is NodePhase.READY for node in online),
        "queued": len(services.queue),
    }
    return JSONResponse(body, status_code=503 if reasons else 200)


@api.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request, services: ServicesDep) -> Response:
    """Prometheus' text format, or OpenMetrics."""
    jobs: Mapping[tuple[str, str], int] = {}
    try:
        await services.catalog.ping()
        # What has not failed yet is told too: Prometheus cannot see a first failure rise from nothing.
        none_failed = {(kind, JobState.FAILED.value): 0 for kind in KINDS}
        jobs, catalog_up = none_failed | await services.catalog.jobs.counts(), True
    except CatalogUnavailable:
        catalog_up = False
    now_s = time.monotonic()
    nodes = {
        node.name: (node.health is Health.ONLINE, len(node.ours), len(node.held_off(now_s)))
        for node in services.registry.nodes()
    }
    services.metrics.show(nodes, jobs, catalog_up=catalog_up)
    return exposition(services.metrics.registry, request)
