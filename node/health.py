"""/health (the process lives), /ready (send me work), /metrics. None of them needs a key."""

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from common.errors import CatalogUnavailable
from common.metrics import exposition
from common.node_api import NodePhase
from common.version import VERSION
from node.services import ServicesDep
from node.status import UNKNOWN_DEVICE, phase_of

api = APIRouter()


@api.get("/health")
async def health() -> dict[str, str]:
    """Answers during a load, a denoise, and while the worker is being replaced."""
    return {"status": "ok", "version": VERSION}


@api.get("/ready")
async def ready(services: ServicesDep) -> JSONResponse:
    """200 when the worker is there, the catalog answers and the node is not draining, else 503 with the reasons."""
    phase, reasons = phase_of(services), []
    if phase is NodePhase.DRAINING:
        reasons.append("the node is draining")
    elif phase is not NodePhase.READY:
        reasons.append(services.worker.last_loss or "the worker is starting")
    try:
        await services.catalog.ping()
    except CatalogUnavailable:
        reasons.append("the catalog cannot be reached")
    return JSONResponse({"ready": not reasons, "reasons": reasons}, status_code=503 if reasons else 200)


@api.get("/metrics")
async def metrics(request: Request, services: ServicesDep) -> Response:
    """Prometheus' text format, or OpenMetrics."""
    services.metrics.show(
        device=services.worker.device or UNKNOWN_DEVICE,
        jobs=[job.status() for job in services.scheduler.jobs],
        restarts=services.worker.restarts,
        replacements=services.worker.replacements,
        held=services.worker.memory,
        ready=phase_of(services) is NodePhase.READY,
        resident=sum(services.residency.is_resident(model.name) for model in services.models),
    )
    return exposition(services.metrics.registry, request)
