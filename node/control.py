"""`/node/v1`: what routers and operators do to a node beside sending runs. All of it needs the node's token."""

from typing import Any

from fastapi import APIRouter
from starlette.responses import StreamingResponse

from common.errors import InvalidRequest, NotFound
from common.node_api import CancelOrder, ChoreKind, ChoreOrder, ChoreStatus, LoadOrder, NodeStatus, TokenOrder
from common.state_lines import MEDIA_TYPE
from node.auth import OperatorDep
from node.models import Model
from node.pulling import parse_source
from node.services import Services, ServicesDep
from node.status import status_of

api = APIRouter(prefix="/node/v1")


@api.get("/status")
async def status(services: ServicesDep, caller: OperatorDep) -> NodeStatus:
    """All a router needs to know."""
    return status_of(services)


@api.get("/events")
async def events(services: ServicesDep, caller: OperatorDep) -> StreamingResponse:
    """The same as it changes, in the lines of `common.state_lines`, until the caller leaves or the node does."""
    return StreamingResponse(services.teller.lines(), media_type=MEDIA_TYPE)


@api.post("/load")
async def load(order: LoadOrder, services: ServicesDep, caller: OperatorDep) -> dict[str, Any]:
    """Bring a model onto the device; answers when it is there. What earlier failures held against it is forgotten."""
    model = _model(services, order.model)
    services.residency.pardon(model.name)
    services.ladder.forget(model)
    device = await services.worker.wait_ready()
    await services.residency.ensure(services.ladder.plan(model, device).order)
    return {"model": model.name, "resident": True}


@api.post("/unload")
async def unload(order: LoadOrder, services: ServicesDep, caller: OperatorDep) -> dict[str, Any]:
    """Give a model's memory back, pinned or not. `unloaded` is false when it was not there; 409 while a run uses it."""
    model = _model(services, order.model)
    unloaded = await services.residency.unload(model.name)
    return {"model": model.name, "resident": False, "unloaded": unloaded}


@api.post("/cancel")
async def cancel(order: CancelOrder, services: ServicesDep, caller: OperatorDep) -> dict[str, Any]:
    """End a run: at once while it waits, at its next step while it runs. `cancelled` is false when it is not here."""
    return {"run_id": order.run_id, "cancelled": services.scheduler.cancel(order.run_id)}


@api.post("/drain")
async def drain(services: ServicesDep, caller: OperatorDep) -> NodeStatus:
    """Take no new runs; those held go on. The status tells when none is left."""
    services.scheduler.draining = True
    services.teller.changed()
    return status_of(services)


@api.post("/resume")
async def resume(services: ServicesDep, caller: OperatorDep) -> NodeStatus:
    """Take runs again."""
    services.scheduler.draining = False
    services.teller.changed()
    return status_of(services)


@api.post("/chores")
async def begin_chore(order: ChoreOrder, services: ServicesDep, caller: OperatorDep) -> ChoreStatus:
    """Begin with long work on this node's files, or look how far the one of this name is."""
    if order.kind is ChoreKind.PULL:
        try:
            parse_source(order.source or "")
        except ValueError as error:
            raise InvalidRequest(str(error), param="source") from None
    return services.chores.begin(order)


@api.delete("/chores/{name}")
async def end_chore(name: str, services: ServicesDep, caller: OperatorDep) -> ChoreStatus:
    """Have such work end. A pull that is begun again goes on where it stopped."""
    return await services.chores.end(name)


@api.post("/token")
async def exchange_token(order: TokenOrder, services: ServicesDep, caller: OperatorDep) -> dict[str, Any]:
    """Take another token; the present one opens for a while yet. 409 where the settings give the token."""
    services.tokens.exchange(order.token)
    return {"object": "node.token"}


def _model(services: Services, name: str) -> Model:
    """The model, or why there is none: an operator may see paths that a client may not."""
    model = services.models.get(name)
    if model is None:
        refused = "; ".join(str(refusal) for refusal in services.models.refused)
        hint = f" Refused on this node: {refused}." if refused else ""
        raise NotFound(f"The model {name!r} does not exist.{hint}", param="model", code="model_not_found")
    return model
