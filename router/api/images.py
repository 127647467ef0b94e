"""POST /v1/images/generations, edits, variations: read, check, dispatch, stream back."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from functools import partial

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from common.catalog import Claim, KeyRecord
from common.errors import AquatintError, RunCancelled
from common.images_api import ImageRequest, Task, events
from common.images_api.openapi import operation
from common.logs import bind
from common.node_api import RUN_ID_HEADER
from common.web import until_client_leaves
from common.web.background import ended
from common.web.headers import Headers, headers_of
from common.web.image_requests import read_image_request
from router.accepting import Sender
from router.answers import REPLAYED
from router.api.runs import shown
from router.arrivals import Arrival
from router.auth import UserKey
from router.body import Body
from router.decisions import DEBUG_HEADER
from router.estimate import Estimate, estimate
from router.forecast import Foreseen, foreseen_event, foreseen_headers
from router.idempotency import claim_of, closed_after, remember
from router.passing import Passed
from router.quotas import held
from router.relay import Accepted, Reply
from router.services import Services, ServicesDep, public_url
from router.wishes import wishes_of

api = APIRouter()

TOLD_EVERY_S = 2.0
"""How often a streamed request that waits is told its place."""

RESPOND_ASYNC = "respond-async"
_DEBUG = DEBUG_HEADER.encode()
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
    asked = await _read(task, request, services)
    if asked.dry_run:
        return await _estimated(asked, request, key, services)
    headers = headers_of(request.scope)
    is_async = _wants_async(headers, asked)
    if asked.webhook_url is not None:
        services.webhooks.checked(asked.webhook_url, is_async=is_async)
    claim = await claim_of(headers, key, asked, is_async=is_async)
    if claim is not None and (earlier := await services.catalog.idempotency.earlier(claim)) is not None:
        if is_async:
            return await _promised(earlier.run_id, request, key, services, replayed=True)
        base_url = public_url(request, services)
        return _answer(await services.answers.replay(earlier, stream=asked.stream, public_url=base_url), asked)
    accepted = await services.acceptance.accept(asked, _sender(asked, claim, request, key, services, is_async=is_async))
    asked = accepted.request  # What was read is not kept while this waits.
    gpu_s = None
    if key.limits.gpu_seconds_per_day is not None:
        gpu_s = _estimate(accepted, services).gpu_s
    hold = await services.quotas.admit(key, images=asked.n, gpu_s=gpu_s or 0.0, is_async=is_async)
    try:
        if not is_async:
            return held(await _admitted(accepted, request, services), hold)
        run_id = await services.async_carrier.accept(accepted, asked.webhook_url)
        return held(await _promised(run_id, request, key, services, replayed=run_id != accepted.run_id), hold)
    except BaseException:
        hold.release()
        raise


async def _read(task: Task, request: Request, services: Services) -> ImageRequest:
    """The request. Where the server does not tell when it has come, it has when it was read; and pictures that it names by
    their address come when they are fetched."""
    arrival: Arrival = request.scope["state"]["arrival"]
    origins = services.settings.image_origins
    if origins.origins and task is Task.EDIT:
        arrival.comes_later()
    asked = await read_image_request(task, request, services.settings.upload_limits, origins)
    arrival.came()
    return asked


async def _admitted(accepted: Accepted, request: Request, services: Services) -> Response:
    bind(run_id=accepted.run_id)
    found = await services.results.reply(accepted)
    if found is not None:
        services.metrics.run(accepted.label, "cached", 0.0)
        return _answer(found, accepted.request)
    if accepted.request.stream:
        return await _streamed(accepted, request, services)
    return _answer(await until_client_leaves(request, _counted(accepted, services)), accepted.request)


async def _estimated(asked: ImageRequest, request: Request, key: KeyRecord, services: Services) -> Response:
    """A dry run: what dispatch would predict just now."""
    is_async = _wants_async(headers_of(request.scope), asked)
    accepted = await services.acceptance.accept(asked, _sender(asked, None, request, key, services, is_async=is_async))
    found, plan = _estimate(accepted, services), services.splitter.plan(accepted)
    return JSONResponse(found.shown(accepted.ask, plan, nodes="admin" in key.scopes))


def _estimate(accepted: Accepted, services: Services) -> Estimate:
    foreseen = services.queue.foresee(accepted.ask, key_id=accepted.key_id, wishes=accepted.wishes)
    return estimate(accepted.ask, services.registry.fleet, foreseen, now_s=time.monotonic())


def _wants_async(headers: Headers, asked: ImageRequest) -> bool:
    """Whether the client asks for the run instead of its answer (RFC 7240). A stream is the better progress report."""
    prefer = headers.get(b"prefer")
    if prefer is None or asked.stream:
        return False
    return RESPOND_ASYNC in {each.partition(";")[0].strip().lower() for each in prefer.decode("latin-1").split(",")}


def _sender(
    asked: ImageRequest, claim: Claim | None, request: Request, key: KeyRecord, services: Services, *, is_async: bool
) -> Sender:
    state, headers = request.scope["state"], headers_of(request.scope)
    arrival: Arrival = state["arrival"]
    return Sender(
        run_id=arrival.run_id,
        arrived_s=arrival.at_s,
        arrival=arrival,
        request_id=state["request_id"],
        requested_model=asked.model,
        key_id=key.id,
        public_url=public_url(request, services),
        claim=claim,
        wishes=wishes_of(headers, key, is_async=is_async),
        debug=headers.get(_DEBUG) == b"1" and "admin" in key.scopes,
    )


async def _promised(run_id: str, request: Request, key: KeyRecord, services: Services, *, replayed: bool) -> Response:
    """202: the run, and where it can be looked at."""
    run = await services.catalog.runs.get(run_id)
    headers = {"location": f"/v1/runs/{run_id}", "preference-applied": RESPOND_ASYNC, RUN_ID_HEADER: run_id}
    body = await shown(run, key, request, services)
    return JSONResponse(body, status_code=202, headers=headers | (REPLAYED if replayed else {}))


async def _counted(accepted: Accepted, services: Services) -> Reply:
    """Dispatch, with its outcome in the metrics."""
    began_s = time.monotonic()
    outcome = "cancelled"
    try:
        reply = await services.carried.carry(accepted.run_id, services.splitter.run(accepted))
        outcome = "succeeded" if reply.status == 200 else "refused"
        if accepted.claim is not None and accepted.request.stream:
            reply.body = closed_after(reply.body, services.catalog, accepted.run_id)
        return reply
    except AquatintError as error:
        outcome = "cancelled" if isinstance(error, RunCancelled) else "failed"
        await remember(services.catalog, accepted, error)
        raise
    finally:
        took_s = time.monotonic() - began_s
        services.later.put(partial(services.metrics.run, accepted.label, outcome, took_s, run_id=accepted.run_id))


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
    foreseen = partial(services.queue.foreseen, accepted.run_id)
    headers = {**events.HEADERS, RUN_ID_HEADER: accepted.run_id} | foreseen_headers(foreseen())
    body = Body(_kept_alive(dispatch, foreseen), lambda whole: _let_go(dispatch))
    return Passed(body, status=200, headers=_headers(headers, accepted.request))


async def _kept_alive(dispatch: asyncio.Task[Reply], foreseen: Callable[[], Foreseen | None]) -> AsyncGenerator[bytes]:
    """Until the answer begins, where the run is and when it will be done, in comments; then the answer."""
    while not dispatch.done():
        now = foreseen()
        yield foreseen_event(now)
        waits = now is not None and now.position
        await asyncio.wait({dispatch}, timeout=TOLD_EVERY_S if waits else events.KEEP_ALIVE_EVERY_S)
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


async def _let_go(dispatch: asyncio.Task[Reply]) -> None:
    """The client left, or all is said."""
    await ended(dispatch)
    if not dispatch.cancelled() and dispatch.exception() is None:
        await dispatch.result().body.aclose()


def _answer(reply: Reply, asked: ImageRequest) -> Response:
    return Passed(reply.body, status=reply.status, headers=_headers(reply.headers, asked), pour=reply.pour)


def _headers(passed_on: Mapping[str, str], asked: ImageRequest) -> dict[str, str]:
    headers = dict(passed_on)
    if asked.ignored:
        told = headers.get("x-ignored-params", "")
        headers["x-ignored-params"] = ",".join(filter(None, [",".join(asked.ignored), told]))
    return headers
