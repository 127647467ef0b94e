"""A node without a device: the real wire, pictures that are a function of the request, and faults on demand.

Run it as a process: `python -m tests.fakes.node --port 9001 --name a --home DIR`. It records runs in the catalog exactly
as a node must (attempt running, bytes, finish), so that a router cannot tell it from a real one.
Faults are set over HTTP: `POST /fake {"mode": "reset", "times": 1, "seconds": 0.5}`. What it began, stored and gave up it
writes to a journal as it happens, which outlives it.
"""

import argparse
import asyncio
import hashlib
import os
import secrets
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from PIL import Image
from starlette.responses import StreamingResponse

from common.catalog import AssetStore, Catalog, NewImage, NewRun, open_asset_store
from common.clock import clock
from common.errors import (
    AquatintError,
    EngineFailed,
    LoraRefused,
    OutOfDeviceMemory,
    RunCancelled,
    StorageFull,
    TooManyRequests,
    Unavailable,
    UserImageError,
)
from common.images_api import (
    AssetLinks,
    ImageRequest,
    Picture,
    ResponseFormat,
    Size,
    Task,
    UploadLimits,
    answer_bytes,
    events,
    usage,
)
from common.images_api.links import SECRET_NAME
from common.later import Later
from common.node_api import (
    ATTEMPT_HEADER,
    KEY_ID_HEADER,
    PLACES_HEADER,
    PUBLIC_URL_HEADER,
    REQUEST_ID_HEADER,
    REQUESTED_MODEL_HEADER,
    RUN_ID_HEADER,
    CancelOrder,
    DeviceStatus,
    JobPhase,
    JobStatus,
    MemoryLimit,
    ModelStatus,
    NodePhase,
    NodeStatus,
    RunTook,
    TokenOrder,
)
from common.pictures import encode
from common.state_lines import MEDIA_TYPE
from common.web import RequestContext, install_error_handlers, serve, until_client_leaves
from common.web.image_requests import read_image_request
from node.places import Places
from node.telling import Teller

TOKEN = "fake-node-token"
MODEL = "fake/model:1"
MAX_PIXELS = 1024 * 1024


@dataclass
class Faults:
    """What goes wrong next, and how often."""

    mode: str = "none"
    times: int = 0
    seconds: float = 0.05

    def take(self) -> str:
        """The fault for this request."""
        if self.times == 0:
            return "none"
        self.times -= 1
        return self.mode


@dataclass
class FakeNode:
    """State of one stand-in."""

    name: str
    catalog: Catalog
    assets: AssetStore
    models: list[str]
    links: AssetLinks = field(default_factory=lambda: AssetLinks("not shared with the router"))
    version: str = "0"
    """Nodes of one version make the same pictures, as routers see it."""
    concurrency: int = 1
    faults: Faults = field(default_factory=Faults)
    jobs: dict[str, JobStatus] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    uploads: list[bytes] = field(default_factory=list)
    """The files of every request, images before masks."""
    loras: list[str] = field(default_factory=list)
    extras: list[str] = field(default_factory=list)
    asked: list[ImageRequest] = field(default_factory=list)
    stops: dict[str, asyncio.Event] = field(default_factory=dict)
    """Set to end a run that is held here."""
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    """What a stream that waits after its previews waits for."""
    phase: NodePhase = NodePhase.READY
    tasks: list[str] = field(default_factory=lambda: [str(task) for task in Task])
    fits_px: int | None = None
    """Area of the largest picture that its memory suffices for."""
    memory_limits: dict[str, MemoryLimit] = field(default_factory=dict)
    paces: dict[str, float] | None = None
    """Seconds that a megapixel-step of each model takes, as it tells them; None: one of all."""
    runs_took: list[RunTook] = field(default_factory=list)
    """What it tells of the time that runs took."""
    token: str | None = None
    """What it was told to open to from now on."""
    most_at_once: int = 0
    """Runs that were here together."""
    listeners: int = 0
    """Routers that have its state stream open."""
    journal: Path | None = None
    """Where `note` writes; None: nowhere."""

    def __post_init__(self) -> None:
        self.teller = Teller(self.status, holds_runs=lambda: bool(self.jobs))
        self.places = Places(lambda: dict.fromkeys(self.jobs, True), self.status, is_open=lambda: self.phase is NodePhase.READY)
        self.places.on_change = self.teller.changed

    def note(self, event: str, run_id: str, attempt: int) -> None:
        """Write down what has just happened to a run here: begun, stored, or left by its client."""
        if self.journal is not None:
            line = {"event": event, "run_id": run_id, "attempt": attempt, "node": self.name, "at_s": time.monotonic()}
            with self.journal.open("ab") as file:
                file.write(orjson.dumps(line) + b"\n")

    def status(self) -> NodeStatus:
        """What a router is told."""
        models = [
            ModelStatus(
                id=name,
                family="fake",
                profile="fake",
                tasks=self.tasks,
                created=0,
                resident=True,
                capabilities={
                    "default_size": "64x64",
                    "default_steps": 4,
                    "loras": [{"name": name, "trigger_words": []} for name in self.loras],
                },
                loras=self.loras,
                memory_limits=self.memory_limits,
                extras=self.extras,
            )
            for name in self.models
        ]
        return NodeStatus(
            name=self.name,
            version=self.version,
            phase=self.phase,
            device=DeviceStatus(kind="cpu", name="fake", memory_total_bytes=1, memory_free_bytes=1),
            models=models,
            jobs=list(self.jobs.values()),
            expected=self.places.expected,
            max_concurrency=self.concurrency,
            seconds_per_unit=dict.fromkeys(self.models, 1.0) if self.paces is None else self.paces,
            runs_took=self.runs_took,
        )


def pixels_for(prompt: str, seed: int, size: Size) -> Image.Image:
    """The picture of one prompt and seed: a flat colour from their hash, so that a mixed-up answer shows."""
    digest = hashlib.sha256(f"{prompt}\n{seed}".encode()).digest()
    return Image.new("RGB", (size.width_px, size.height_px), tuple(digest[:3]))


def build_fake(node: FakeNode) -> FastAPI:
    """The stand-in as an ASGI app."""
    app = FastAPI()
    install_error_handlers(app)

    async def answer(task: Task, request: Request) -> Response:
        with node.places.taken(request.headers[RUN_ID_HEADER], int(request.headers[PLACES_HEADER])):
            asked = await read_image_request(task, request, UploadLimits())
            return await until_client_leaves(request, _generate(node, request, asked))

    @app.post("/v1/images/generations")
    async def generate(request: Request) -> Response:
        return await answer(Task.GENERATION, request)

    @app.post("/v1/images/edits")
    async def edit(request: Request) -> Response:
        return await answer(Task.EDIT, request)

    @app.post("/v1/images/variations")
    async def vary(request: Request) -> Response:
        return await answer(Task.VARIATION, request)

    @app.get("/node/v1/status")
    async def status() -> Response:
        if node.faults.mode == "status_500":
            return Response("no", status_code=500)
        if node.faults.mode == "silent":
            await asyncio.Event().wait()
        return Response(node.status().model_dump_json(), media_type="application/json")

    @app.get("/node/v1/events")
    async def told() -> Response:
        if node.faults.mode in ("status_500", "no_stream"):
            return Response("no", status_code=500)
        return StreamingResponse(_told(node), media_type=MEDIA_TYPE)

    @app.post("/node/v1/cancel")
    async def cancel(order: CancelOrder) -> dict[str, Any]:
        stop = node.stops.get(order.run_id)
        if stop is not None:
            stop.set()
        return {"run_id": order.run_id, "cancelled": stop is not None}

    @app.post("/node/v1/token")
    async def exchange_token(order: TokenOrder) -> dict[str, Any]:
        node.token = order.token
        return {"object": "node.token"}

    @app.post("/fake")
    async def fake(wanted: dict[str, Any]) -> dict[str, Any]:
        node.phase = NodePhase(wanted.pop("phase", node.phase))
        node.faults = Faults(**wanted)
        return {"started": node.started, "cancelled": node.cancelled, "pid": os.getpid()}

    app.add_middleware(RequestContext, later=Later())
    return app


async def _told(node: FakeNode) -> AsyncIterator[bytes]:
    node.listeners += 1
    try:
        async with aclosing(node.teller.lines()) as lines:
            async for line in lines:
                if node.faults.mode in ("status_500", "no_stream"):
                    return
                if node.faults.mode == "silent":
                    await asyncio.Event().wait()
                yield line
    finally:
        node.listeners -= 1


async def _generate(node: FakeNode, request: Request, asked: ImageRequest) -> Response:
    run_id, attempt = request.headers[RUN_ID_HEADER], int(request.headers[ATTEMPT_HEADER])
    fault = node.faults.take()
    node.started.append(run_id)
    node.asked.append(asked)
    if unknown := {each.name for each in asked.loras}.difference(node.loras):
        raise LoraRefused(f"There is no LoRA {min(unknown)!r} here.")
    node.uploads += [upload.content for upload in (*asked.images, asked.mask) if upload is not None]
    if asked.size is not None and asked.size.pixels > MAX_PIXELS:
        raise UserImageError(f"Invalid size '{asked.size}': at most {MAX_PIXELS} pixels.", param="size")
    if asked.size is not None and node.fits_px is not None and asked.size.pixels > node.fits_px:
        node.memory_limits[asked.task] = MemoryLimit(too_large_px=asked.size.pixels, fits_px=node.fits_px)
        raise OutOfDeviceMemory(f"The memory does not suffice for {asked.size}; {node.fits_px} pixels fit.", param="size")
    if fault == "busy":
        raise TooManyRequests("no place", retry_after_s=1)
    if fault == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "error_500":
        raise EngineFailed("the engine fell over")
    if fault == "error_503":
        raise Unavailable("not now", retry_after_s=1)
    if fault == "storage_full":
        raise StorageFull("The asset folder cannot be written: No space left on device.", retry_after_s=30)
    if fault == "garbage_500":
        return Response(b"<html>oops", status_code=500)
    await node.catalog.runs.take_on(run_of(request.headers, asked), attempt, node=node.name)
    node.note("begun", run_id, attempt)
    assert asked.model is not None
    job = JobStatus(run_id=run_id, model=asked.model, phase=JobPhase.RUNNING, step=0, steps=4, work_units=0.01)
    node.jobs[run_id] = job
    node.most_at_once = max(node.most_at_once, len(node.jobs))
    node.teller.changed()
    stop = node.stops[run_id] = asyncio.Event()
    try:
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), node.faults.seconds)
            raise RunCancelled("Cancelled by an operator.")
        return await _finish(node, request, asked, run_id, attempt, fault)
    except (asyncio.CancelledError, RunCancelled):
        node.cancelled.append(run_id)
        node.note("left", run_id, attempt)
        raise
    finally:
        node.jobs.pop(run_id, None)
        node.teller.changed()
        node.stops.pop(run_id, None)


def run_of(headers: Mapping[str, str], asked: ImageRequest) -> NewRun:
    """A router's run as a node records it."""
    assert asked.model is not None
    return NewRun(
        id=headers[RUN_ID_HEADER],
        task=str(asked.task),
        model=asked.model,
        requested_model=headers.get(REQUESTED_MODEL_HEADER),
        prompt=asked.prompt,
        request=asked.to_json(),
        key_id=headers.get(KEY_ID_HEADER),
        request_id=headers[REQUEST_ID_HEADER],
        source="router",
        seed=asked.seed,
        n=asked.n,
        width_px=asked.size.width_px if asked.size else None,
        height_px=asked.size.height_px if asked.size else None,
    )


async def _finish(node: FakeNode, request: Request, asked: Any, run_id: str, attempt: int, fault: str) -> Response:
    size = asked.size or Size(64, 64)
    files = [encode(pixels_for(asked.prompt, asked.seed + i, size), output_format=asked.output_format) for i in range(asked.n)]
    images = [
        NewImage(
            index=i,
            sha256=await node.assets.put(content),
            size_bytes=len(content),
            format=str(asked.output_format),
            width_px=size.width_px,
            height_px=size.height_px,
            seed=asked.seed + i,
        )
        for i, content in enumerate(files)
    ]
    now_s = int(clock.now_s())
    head = {
        "created": now_s,
        "size": str(size),
        "quality": "medium",
        "background": "opaque",
        "output_format": str(asked.output_format),
        "id": run_id,
        "model": asked.model,
        "usage": usage(text_tokens=1, pictures=asked.n, width_px=size.width_px, height_px=size.height_px),
    }
    ids = await node.catalog.runs.finish(
        run_id, attempt, images=images, effective={}, timings={"total": node.faults.seconds}, answer=head
    )
    node.note("stored", run_id, attempt)
    pictures = [_picture(node, request, asked, asked.seed + i, ids[i], files[i], float(now_s)) for i in range(asked.n)]
    if fault == "finish_then_die":
        os.kill(os.getpid(), signal.SIGKILL)
    if asked.stream:
        told = {**events.HEADERS, RUN_ID_HEADER: run_id}
        return StreamingResponse(_events(node, asked, head, pictures[0], fault), headers=told)
    body = answer_bytes(head, pictures)
    if fault == "half_then_die":
        headers = {RUN_ID_HEADER: run_id, "content-length": str(len(body))}
        return StreamingResponse(_half(body), media_type="application/json", headers=headers)
    return Response(body, media_type="application/json", headers={RUN_ID_HEADER: run_id})


def _picture(node: FakeNode, request: Request, asked: Any, seed: int, image_id: str, content: bytes, now_s: float) -> Picture:
    if asked.response_format is not ResponseFormat.URL:
        return Picture(seed, image_id, content=content)
    base = request.headers[PUBLIC_URL_HEADER]
    return Picture(seed, image_id, url=node.links.sign(base, image_id, asked.output_format, now_s=now_s))


async def _events(
    node: FakeNode, asked: ImageRequest, head: dict[str, Any], picture: Picture, fault: str
) -> AsyncIterator[bytes]:
    assert picture.content is not None
    shown = {name: head[name] for name in ("size", "quality", "background", "output_format")} | {"created_at": head["created"]}
    for index in range(asked.partial_images):
        preview = events.partial_image(asked.task, picture.content, index, shown)
        if fault == "die_in_preview":
            async for half in _half(preview):
                yield half
        yield preview
    if fault == "wait_in_stream":
        await node.go_on.wait()
    if fault == "fail_in_stream":
        yield events.failed(EngineFailed("the engine fell over"))
        return
    last = events.completed(asked.task, picture.content, events.completed_head(head, picture.seed, picture.asset_id))
    if fault == "die_in_picture":
        async for half in _half(last):
            yield half
    yield last


async def _half(body: bytes) -> AsyncIterator[bytes]:
    yield body[: len(body) // 2]
    # Let what was written reach the wire before this process is gone.
    await asyncio.sleep(0.1)
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """One stand-in as a process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--database-url", required=True)
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--journal", type=Path)
    wanted = parser.parse_args()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        catalog = await Catalog.open(wanted.database_url)
        links = AssetLinks(await catalog.secrets.get_or_create(SECRET_NAME, lambda: secrets.token_urlsafe(32)))
        assets = open_asset_store(str(wanted.home / "assets"))
        node = FakeNode(wanted.name, catalog, assets, wanted.model or [MODEL], links, journal=wanted.journal)
        for name in node.models:
            # As every node does: a router that has just started knows by it what there is, before it has looked.
            await catalog.models.upsert(name=name, family="fake", profile="fake", licence=None, capabilities={}, files=[])
        app.state.node = node
        app.mount("/", build_fake(node))
        yield
        await catalog.close()

    app = FastAPI(lifespan=lifespan)
    # Told to stop, it ends its state streams, as a node does: whoever listens would else keep it for ever.
    serve(app, host="127.0.0.1", port=wanted.port, on_stop=lambda: app.state.node.teller.leave())


__all__ = ["MODEL", "TOKEN", "AquatintError", "FakeNode", "build_fake", "pixels_for"]

if __name__ == "__main__":
    main()
