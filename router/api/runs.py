"""GET /v1/runs: what becomes of one's own requests, while they are under way and after."""

from datetime import datetime
from typing import Any

from fastapi import APIRouter

from common.catalog import RunRecord
from common.errors import NotFound
from router.auth import UserKey
from router.node_client import Address, NodeLost, NodeNonsense, NodeUnreachable
from router.relay import Accepted
from router.services import Services, ServicesDep

api = APIRouter()


@api.get("/v1/runs")
async def runs_under_way(key: UserKey, services: ServicesDep, request_id: str | None = None) -> dict[str, Any]:
    """Runs of this key that this router holds just now, with their progress; of one `x-request-id` if given.

    So a client that chose its request id can watch the request it is still waiting for.
    """
    held = [
        accepted
        for accepted in services.dispatcher.held.values()
        if accepted.key_id == key.id and request_id in (None, accepted.request_id)
    ]
    return {"object": "list", "data": [await _under_way(accepted, services) for accepted in held]}


async def _under_way(accepted: Accepted, services: Services) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": accepted.run_id, "object": "run", "model": accepted.ask.model}
    waiting = services.queue.waiting()
    if accepted.run_id in waiting:
        return shown | {"phase": "queued", "position": waiting.index(accepted.run_id) + 1}
    for node in services.registry.nodes():
        if accepted.run_id in node.ours:
            try:
                status = await services.client.status(Address(node.record.url, node.record.token))
            except (NodeUnreachable, NodeLost, NodeNonsense):
                break
            for job in status.jobs:
                if job.run_id == accepted.run_id:
                    return shown | {"phase": str(job.phase), "step": job.step, "steps": job.steps}
    return shown | {"phase": "sent"}


@api.get("/v1/runs/{run_id}")
async def retrieve_run(run_id: str, key: UserKey, services: ServicesDep) -> dict[str, Any]:
    """One run with its attempts and images. Another key's run does not exist, except for admins."""
    run = await services.catalog.runs.get(run_id)
    admin = "admin" in key.scopes
    if run.key_id != key.id and not admin:
        raise NotFound(f"There is no run {run_id!r}.", code="run_not_found")
    return shown(run, nodes=admin)


def shown(run: RunRecord, *, nodes: bool) -> dict[str, Any]:
    """A run as JSON. nodes: whether to name the nodes, which is the operator's business only."""
    return {
        "id": run.id,
        "object": "run",
        "status": str(run.status),
        "task": run.task,
        "model": run.model,
        "requested_model": run.requested_model,
        "request": run.request,
        "parameters": run.effective,
        "timings": run.timings,
        "error": {"code": run.error_code, "message": run.error_message} if run.error_code else None,
        "created": _unix(run.created_at),
        "started": _unix(run.started_at),
        "finished": _unix(run.finished_at),
        "images": [
            {"id": i.id, "index": i.index, "seed": i.seed, "format": i.format, "size": f"{i.width_px}x{i.height_px}"}
            for i in run.images
        ],
        "attempts": [
            {"no": a.no, "status": str(a.status), "error": a.error_code} | ({"node": a.node} if nodes else {})
            for a in run.attempts
        ],
    }


def _unix(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())
