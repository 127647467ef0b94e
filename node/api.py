"""OpenAI's routes on a node: images, models, and the bytes behind signed links."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from fastapi import APIRouter, Request, Response

from common.errors import InvalidRequest, NotFound
from common.images_api import ImageRequest, Task, answer_bytes
from common.node_api import (
    ATTEMPT_HEADER,
    KEY_ID_HEADER,
    PLACES_HEADER,
    PUBLIC_URL_HEADER,
    REQUESTED_MODEL_HEADER,
    RUN_ID_HEADER,
    model_object,
)
from common.web import until_client_leaves
from common.web.image_requests import read_image_request
from common.web.shown_pictures import picture_response
from node.auth import Caller, CallerDep
from node.recorder import Sender
from node.services import Services, ServicesDep
from node.status import model_status
from node.streaming import streamed, told

api = APIRouter()


@api.post("/v1/images/generations")
async def generate(request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """OpenAI's `images.generate`."""
    return await _make(Task.GENERATION, request, services, caller)


@api.post("/v1/images/edits")
async def edit(request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """OpenAI's `images.edit`: a form, or JSON with data URLs."""
    return await _make(Task.EDIT, request, services, caller)


@api.post("/v1/images/variations")
async def vary(request: Request, services: ServicesDep, caller: CallerDep) -> Response:
    """OpenAI's former `images.create_variation`."""
    return await _make(Task.VARIATION, request, services, caller)


async def _make(task: Task, request: Request, services: Services, caller: Caller) -> Response:
    sender = _sender(request, services, caller)
    with _place(request, services, sender):
        return await _made(task, request, services, sender)


def _place(request: Request, services: Services, sender: Sender) -> AbstractContextManager[None]:
    """The place of a run that a router sent, before its request is read. Others wait their turn as far as there is room."""
    most = _number(request, PLACES_HEADER) if sender.run_id is not None else None
    return nullcontext() if sender.run_id is None or most is None else services.places.taken(sender.run_id, most)


async def _made(task: Task, request: Request, services: Services, sender: Sender) -> Response:
    asked = _as_sent(
        await read_image_request(task, request, services.settings.upload_limits, services.settings.image_origins), sender
    )
    if asked.dry_run:
        raise InvalidRequest("A dry run is answered by a router; this is a node.", param="dry_run")
    if asked.stream:
        return await streamed(asked, sender, request, services.runs)
    answer = await until_client_leaves(request, services.runs.make(asked, sender))
    return Response(answer_bytes(answer.head, answer.pictures), media_type="application/json", headers=told(answer))


def _sender(request: Request, services: Services, caller: Caller) -> Sender:
    """Who asks. A router's headers are believed only with the node's token."""
    headers = request.headers
    base_url = services.settings.public_url or str(request.base_url)
    if not caller.trusted:
        return Sender(request_id=request.state.request_id, base_url=base_url, key_id=caller.key_id)
    run_id, attempt = headers.get(RUN_ID_HEADER), _number(request, ATTEMPT_HEADER)
    return Sender(
        request_id=request.state.request_id,
        base_url=headers.get(PUBLIC_URL_HEADER) or base_url,
        run_id=run_id,
        attempt=attempt if run_id else None,
        key_id=headers.get(KEY_ID_HEADER),
        requested_model=headers.get(REQUESTED_MODEL_HEADER),
    )


def _number(request: Request, header: str) -> int | None:
    """A router's header that is a small number. Raises: InvalidRequest."""
    told = request.headers.get(header, "")
    if told and not (told.isascii() and told.isdigit() and len(told) < 6):
        raise InvalidRequest(f"The header {header} must be a number.")
    return int(told) if told else None


def _as_sent(request: ImageRequest, sender: Sender) -> ImageRequest:
    """The request with its response format settled: the default hangs on the name the client used, not on ours."""
    named = request if sender.requested_model is None else request._replace(model=sender.requested_model)
    return request._replace(response_format=named.effective_response_format)


@api.get("/v1/models")
async def list_models(services: ServicesDep, caller: CallerDep) -> dict[str, Any]:
    """OpenAI's `models.list`."""
    return {"object": "list", "data": [_shown(services, model.name) for model in services.models]}


@api.get("/v1/models/{model_id:path}")
async def retrieve_model(model_id: str, services: ServicesDep, caller: CallerDep) -> dict[str, Any]:
    """OpenAI's `models.retrieve`; ids may hold slashes and colons."""
    return _shown(services, model_id)


def _shown(services: Services, name: str) -> dict[str, Any]:
    model = services.models.get(name)
    if model is None:
        raise NotFound(f"The model {name!r} does not exist.", param="model", code="model_not_found")
    return model_object(model_status(services, model))


@api.head("/v1/assets/{name}", include_in_schema=False)
@api.get("/v1/assets/{name}")
async def asset(name: str, services: ServicesDep, expires: str = "", signature: str = "") -> Response:
    """The picture behind a signed link. No key: the link is the permission. `name`: image id and file ending."""
    return await picture_response(
        name, expires, signature, catalog=services.catalog, assets=services.assets, links=services.links
    )
