"""/v1/runs: what becomes of one's own requests, while they are under way and after; and how to end one."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from common.catalog import AttemptStatus, KeyRecord, RunRecord, RunStatus
from common.errors import Conflict, NoCapacity, NotFound
from router.auth import AdminKey, UserKey
from router.node_client import NodeLost, NodeNonsense, NodeUnreachable
from router.run_object import run_object
from router.services import Services, ServicesDep, public_url

api = APIRouter()

OPEN = (RunStatus.QUEUED, RunStatus.RUNNING)
ASK_AGAIN_S = 1


@api.get("/v1/runs")
async def runs_under_way(key: UserKey, services: ServicesDep, request_id: str | None = None) -> dict[str, Any]:
    """Runs of this key that this router holds just now, with their progress; of one `x-request-id` if given.

    So a client that chose its request id can watch the request it is still waiting for.
    """
    held = [
        accepted
        for accepted in services.dispatcher.held.values()
        if accepted.key_id == key.id and accepted.parent_id is None and request_id in (None, accepted.request_id)
    ]
    shown = [
        {"id": each.run_id, "object": "run", "model": each.ask.model} | await _progress(each.run_id, None, services)
        for each in held
    ]
    return {"object": "list", "data": shown}


async def _progress(run_id: str, sent_to: str | None, services: Services) -> dict[str, Any]:
    """Where an open run is, and when it will be done. sent_to: the node of its attempt, where the catalog names one."""
    held = services.dispatcher.held.values()
    if parts := [(each.run_id, None) for each in held if each.parent_id == run_id]:
        return await _of_parts(parts, services)
    foreseen = services.queue.foreseen(run_id)
    eta = {} if foreseen is None or foreseen.finish_s is None else {"eta_s": round(foreseen.finish_s, 2)}
    if foreseen is not None and foreseen.position:
        return {"phase": "queued", "position": foreseen.position} | _why_stranded(run_id, services) | eta
    return await _at_node(run_id, sent_to, services) | eta


def _why_stranded(run_id: str, services: Services) -> dict[str, str]:
    """Why no node can take a run that waits, which is what it will be told when its time is over; nothing of any other."""
    stranded = services.queue.stranded(run_id)
    return {} if stranded is None else {"waits_because": NoCapacity(stranded[0].model, stranded[1].turned_away).message}


async def _of_parts(parts: Sequence[tuple[str, str | None]], services: Services) -> dict[str, Any]:
    """A run is as far as its last part that is open. parts: (id, node of its attempt) of each that is."""
    progress = [await _progress(run_id, sent_to, services) for run_id, sent_to in parts]
    # What no node can take has no time told.
    return max(progress, key=lambda each: ("waits_because" in each, each.get("eta_s", 0.0)), default={"phase": "sent"})


async def _at_node(run_id: str, sent_to: str | None, services: Services) -> dict[str, Any]:
    for node in services.registry.nodes():
        if run_id in node.ours or node.name == sent_to:
            try:
                status = await services.client.status(node.address)
            except (NodeUnreachable, NodeLost, NodeNonsense):
                break
            for job in status.jobs:
                if job.run_id == run_id:
                    return {"phase": str(job.phase), "step": job.step, "steps": job.steps}
    # An async run may wait in another router's queue, or for one to take it on.
    return {"phase": "sent" if run_id in services.dispatcher.held or sent_to is not None else "queued"}


@api.get("/v1/runs/{run_id}")
async def retrieve_run(run_id: str, key: UserKey, request: Request, services: ServicesDep) -> dict[str, Any]:
    """One run with its attempts, its progress while it is open, and links to its pictures.

    Another key's run does not exist, except for admins.
    """
    return await shown(await _own(run_id, key, services), key, request, services)


@api.get("/v1/runs/{run_id}/answer", responses={202: {"description": "The run, which has not ended; see `Retry-After`."}})
async def retrieve_answer(run_id: str, key: UserKey, request: Request, services: ServicesDep) -> Response:
    """What the request would have been answered, had its client waited."""
    run = await _own(run_id, key, services)
    if run.status in OPEN:
        body = await shown(run, key, request, services)
        return JSONResponse(body, status_code=202, headers={"retry-after": str(ASK_AGAIN_S)})
    if run.status is not RunStatus.SUCCEEDED:
        raise Conflict(f"The run is {run.status} and has no answer: {run.error_message}", code=run.error_code)
    return Response(await services.answers.body(run, public_url(request, services)), media_type="application/json")


@api.get("/v1/runs/{run_id}/decisions")
async def explain_run(run_id: str, key: AdminKey, services: ServicesDep) -> dict[str, Any]:
    """Why each attempt of a run went to its node, who was turned away, and the predicted against the real finish.

    Of a run that was made in parts: the plan, and the decisions of each part.
    """
    run = await services.catalog.runs.get(run_id)
    told = [*await services.decisions.of(run_id)]
    for part in run.parts:
        told += [{"part": part.id} | each for each in await services.decisions.of(part.id)]
    return {"object": "list", "data": told}


@api.delete("/v1/runs/{run_id}")
async def cancel_run(run_id: str, key: UserKey, request: Request, services: ServicesDep) -> dict[str, Any]:
    """End a run: at once while it waits, at its next step while it runs. Ending it again changes nothing."""
    run = await _own(run_id, key, services)
    if not await services.catalog.runs.cancel(run_id, reason="Cancelled by its client."):
        run = await services.catalog.runs.get(run_id)
        if run.status is not RunStatus.CANCELLED:
            raise Conflict(f"The run has ended already: it {run.status}.", code="run_ended")
    await _stop(run, services)
    await services.catalog.async_runs.ended(run_id)
    return await shown(await services.catalog.runs.get(run_id), key, request, services)


async def _stop(run: RunRecord, services: Services) -> None:
    """Take a cancelled run from whoever has it. One that waits at another router never begins: it has no attempt left."""
    if services.carried.withdraw(run.id):
        return
    nodes = {node.name: node.address for node in services.registry.nodes()}
    for each in (run, *run.parts):
        at_node = any(a.status in (AttemptStatus.SENT, AttemptStatus.RUNNING) for a in each.attempts)
        if at_node and each.node in nodes:
            await services.client.cancel(nodes[each.node], each.id)


async def _own(run_id: str, key: KeyRecord, services: Services) -> RunRecord:
    run = await services.catalog.runs.get(run_id)
    if run.key_id != key.id and "admin" not in key.scopes:
        raise NotFound(f"There is no run {run_id!r}.", code="run_not_found")
    return run


async def shown(run: RunRecord, key: KeyRecord, request: Request, services: Services) -> dict[str, Any]:
    """A run as its client may see it."""
    told = run_object(run, services.links, public_url=public_url(request, services), nodes="admin" in key.scopes)
    record = await services.catalog.async_runs.get(run.id)
    if record is not None and record.webhook_url is not None:
        told["webhook"] = {
            "url": record.webhook_url,
            "tries": record.webhook_tries,
            "error": record.webhook_error,
            "pending": record.webhook_pending,
        }
    if run.status in OPEN:
        parts = [(part.id, part.node) for part in run.parts if part.status in OPEN]
        told |= await (_of_parts(parts, services) if parts else _progress(run.id, run.node, services))
    return told
