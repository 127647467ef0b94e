"""POST /v1/images/generations: read, check, dispatch, stream back."""

import dataclasses
import time
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse
from ulid import ULID

from common.catalog import KeyRecord
from common.errors import AquatintError, RunCancelled
from common.images_api import MAX_JSON_BYTES, ImageRequest, Task, read_json_request
from common.node_api import RUN_ID_HEADER, ModelStatus
from common.web import read_body, until_client_leaves
from router.auth import UserKey
from router.placement import Ask
from router.relay import Accepted, Reply
from router.services import Services, ServicesDep

api = APIRouter()

PRIOR_STEPS = 30
PRIOR_PIXELS = 1024 * 1024


@api.post("/v1/images/generations")
async def generate(request: Request, key: UserKey, services: ServicesDep) -> Response:
    """OpenAI's `images.generate`."""
    body = await read_body(request, max_bytes=MAX_JSON_BYTES)
    return await _carry(read_json_request(Task.GENERATION, body), request, key, services)


@api.options("/v1/images/generations")
async def ping() -> Response:
    """Some clients ask this before they offer the server."""
    return Response(status_code=204, headers={"allow": "OPTIONS, POST"})


async def _carry(asked: ImageRequest, request: Request, key: KeyRecord, services: Services) -> Response:
    model, status = await services.names.resolve(asked.model)
    # The default for `response_format` goes by the name the client used, so it is fixed before the name is resolved.
    resolved = dataclasses.replace(asked, model=model, response_format=asked.effective_response_format).with_seed()
    accepted = Accepted(
        run_id=f"run_{ULID()}",
        request_id=request.state.request_id,
        request=resolved,
        requested_model=asked.model,
        ask=Ask(model, str(resolved.task), work_units(resolved, status)),
        key_id=key.id,
        public_url=public_url(request, services),
    )
    began_s = time.monotonic()
    label = model if status is not None else "other"
    try:
        reply = await until_client_leaves(request, services.dispatcher.run(accepted))
    except AquatintError as error:
        outcome = "cancelled" if isinstance(error, RunCancelled) else "failed"
        services.metrics.run(label, outcome, time.monotonic() - began_s)
        raise
    services.metrics.run(label, "succeeded" if reply.status == 200 else "refused", time.monotonic() - began_s)
    return _answer(reply, accepted)


def work_units(request: ImageRequest, status: ModelStatus | None) -> float:
    """Megapixel-steps of a request: width x height / 1e6 x steps x n, with the model's defaults where it names none."""
    told: dict[str, Any] = status.capabilities if status is not None else {}
    steps = request.num_inference_steps or int(told.get("default_steps") or PRIOR_STEPS)
    width, _, height = str(told.get("default_size") or "").partition("x")
    default_pixels = int(width) * int(height) if width.isdigit() and height.isdigit() else PRIOR_PIXELS
    pixels = request.size.pixels if request.size is not None else default_pixels
    return pixels / 1e6 * steps * request.n


def public_url(request: Request, services: Services) -> str:
    """Base of the links the client gets: as configured, else the very address it called, so that browsers and
    clients that refuse foreign origins follow them."""
    return services.settings.public_url or f"{request.url.scheme}://{request.url.netloc}"


def _answer(reply: Reply, accepted: Accepted) -> Response:
    headers = dict(reply.headers) | {RUN_ID_HEADER: accepted.run_id}
    if accepted.request.ignored:
        told = headers.get("x-ignored-params", "")
        headers["x-ignored-params"] = ",".join(filter(None, [",".join(accepted.request.ignored), told]))
    return StreamingResponse(reply.body, status_code=reply.status, headers=headers)
