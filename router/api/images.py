"""POST /v1/images/generations, edits, variations: read, check, dispatch, stream back."""

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse
from ulid import ULID

from common.catalog import Claim, KeyRecord
from common.errors import AquatintError, RunCancelled, UnsupportedTask
from common.images_api import ImageRequest, Task, asked_for, events
from common.images_api.openapi import operation
from common.node_api import RUN_ID_HEADER, ModelStatus, extras_of
from common.web import until_client_leaves
from common.web.background import ended
from common.web.image_requests import read_image_request
from router.auth import UserKey
from router.idempotency import claim_of, closed_after, remember
from router.placement import Ask
from router.relay import Accepted, Reply
from router.services import Services, ServicesDep

api = APIRouter()

PRIOR_STEPS = 30
PRIOR_PIXELS = 1024 * 1024
EVENTS_AFTER_S = 10.0
"""How long a streamed request may still be answered with an ordinary error; then the stream begins, with keep-alives."""


@api.post("/v1/images/generations", openapi_extra=operation(Task.GENERATION))
async def generate(request: Request, key: UserKey, services: ServicesDep) -> Response:
    """OpenAI's `images.generate`."""
    return await _carry(Task.GENERATION, request, key, services)


@api.post("/v1/images/edits", openapi_extra=operation(Task.EDIT))
async def edit(request: Request, key: UserKey, services: ServicesDep) -> Response:
    """OpenAI's `images.edit`: a form, or JSON with data URLs."""
    return await _carry(Task.EDIT, request, key, services)


@api.post("/v1/images/variations", openapi_extra=operation(Task.VARIATION))
async def vary(request: Request, key: UserKey, services: ServicesDep) -> Response:
    """OpenAI's former `images.create_variation`."""
    return await _carry(Task.VARIATION, request, key, services)


@api.options("/v1/images/generations", include_in_schema=False)
@api.options("/v1/images/edits", include_in_schema=False)
@api.options("/v1/images/variations", include_in_schema=False)
async def ping() -> Response:
    """Some clients ask this before they offer the server."""
    return Response(status_code=204, headers={"allow": "OPTIONS, POST"})


async def _carry(task: Task, request: Request, key: KeyRecord, services: Services) -> Response:
    asked = await read_image_request(task, request, services.settings.upload_limits, services.settings.image_origins)
    claim = await claim_of(request, key, asked)
    if claim is not None and (earlier := await services.catalog.idempotency.earlier(claim)) is not None:
        base_url = public_url(request, services)
        return _answer(await services.answers.replay(earlier, stream=asked.stream, public_url=base_url), asked)
    accepted = await _accepted(asked, claim, request, key, services)
    if asked.stream:
        return await _streamed(accepted, request, services)
    return _answer(await until_client_leaves(request, _counted(accepted, services)), asked)


async def _accepted(asked: ImageRequest, claim: Claim | None, request: Request, key: KeyRecord, services: Services) -> Accepted:
    model, status = await services.names.resolve(asked.model)
    offered = services.registry.tasks(model)
    if offered and asked.task not in offered:
        raise UnsupportedTask(asked.model or model, asked.task, offered)
    # The default for `response_format` goes by the name the client used, so it is fixed before the name is resolved.
    resolved = dataclasses.replace(asked, model=model, response_format=asked.effective_response_format).with_seed()
    _, asks = asked_for(resolved.prompt, resolved.loras)
    loras = services.registry.loras(model).intersection(each.name for each in asks)
    extras = services.registry.extras(model) & extras_of(resolved)
    return Accepted(
        run_id=f"run_{ULID()}",
        request_id=request.state.request_id,
        request=resolved,
        requested_model=asked.model,
        ask=Ask(model, str(resolved.task), work_units(resolved, status), loras, pixels(resolved, status), extras),
        key_id=key.id,
        public_url=public_url(request, services),
        label=model if status is not None else "other",
        claim=claim,
    )


async def _counted(accepted: Accepted, services: Services) -> Reply:
    """Dispatch, with its outcome in the metrics."""
    began_s = time.monotonic()
    outcome = "cancelled"
    try:
        reply = await services.dispatcher.run(accepted)
        outcome = "succeeded" if reply.status == 200 else "refused"
        if accepted.claim is not None and accepted.request.stream:
            reply.body = closed_after(reply.body, services.catalog, accepted.run_id)
        return reply
    except AquatintError as error:
        outcome = "cancelled" if isinstance(error, RunCancelled) else "failed"
        await remember(services.catalog, accepted, error)
        raise
    finally:
        services.metrics.run(accepted.label, outcome, time.monotonic() - began_s)


async def _streamed(accepted: Accepted, request: Request, services: Services) -> Response:
    """An answer in events. What goes wrong soon is an ordinary error; later it is the last event."""
    dispatch = asyncio.create_task(_counted(accepted, services))
    try:
        await until_client_leaves(request, asyncio.wait({dispatch}, timeout=EVENTS_AFTER_S))
        if dispatch.done():
            return _answer(dispatch.result(), accepted.request)
    except BaseException:
        await ended(dispatch)
        raise
    headers = {**events.HEADERS, RUN_ID_HEADER: accepted.run_id}
    return StreamingResponse(_kept_alive(dispatch), headers=_headers(headers, accepted.request))


async def _kept_alive(dispatch: asyncio.Task[Reply]) -> AsyncIterator[bytes]:
    """Keep-alives until the answer begins, then the answer."""
    try:
        while not dispatch.done():
            yield events.KEEP_ALIVE
            await asyncio.wait({dispatch}, timeout=events.KEEP_ALIVE_EVERY_S)
        try:
            reply = dispatch.result()
        except AquatintError as error:
            yield events.failed(error)
            return
        if reply.status == 200:
            async for chunk in reply.body:
                yield chunk
        else:
            yield events.refused(b"".join([chunk async for chunk in reply.body]))
    finally:
        # The client left, or all is said.
        await ended(dispatch)


def work_units(request: ImageRequest, status: ModelStatus | None) -> float:
    """Megapixel-steps of a request: width x height / 1e6 x steps x n, with the model's defaults where it names none."""
    told: dict[str, Any] = status.capabilities if status is not None else {}
    steps = request.num_inference_steps or int(told.get("default_steps") or PRIOR_STEPS)
    return pixels(request, status) / 1e6 * steps * request.n


def pixels(request: ImageRequest, status: ModelStatus | None) -> int:
    """Area of one picture of a request, with the size of its input or the model's default where it names none."""
    if request.size is not None:
        return request.size.pixels
    if request.images:
        return request.images[0].width_px * request.images[0].height_px
    told: dict[str, Any] = status.capabilities if status is not None else {}
    width, _, height = str(told.get("default_size") or "").partition("x")
    return int(width) * int(height) if width.isdigit() and height.isdigit() else PRIOR_PIXELS


def public_url(request: Request, services: Services) -> str:
    """Base of the links the client gets: as configured, else the very address it called, so that browsers and
    clients that refuse foreign origins follow them."""
    return services.settings.public_url or f"{request.url.scheme}://{request.url.netloc}"


def _answer(reply: Reply, asked: ImageRequest) -> Response:
    return StreamingResponse(reply.body, status_code=reply.status, headers=_headers(reply.headers, asked))


def _headers(passed_on: Mapping[str, str], asked: ImageRequest) -> dict[str, str]:
    headers = dict(passed_on)
    if asked.ignored:
        told = headers.get("x-ignored-params", "")
        headers["x-ignored-params"] = ",".join(filter(None, [",".join(asked.ignored), told]))
    return headers
