"""Makes every part of the node, in order, and closes them in the reverse order."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI

from common.catalog import Catalog, load_or_create_secret_key, open_asset_store
from common.errors import AquatintError
from common.images_api import AssetLinks
from common.images_api.links import SECRET_NAME
from common.later import Later
from common.logs import get_logger
from common.node_api import DeviceStatus
from common.version import VERSION
from common.web import RequestContext, install_error_handlers
from common.web.background import run_beside
from common.web.paths import LenientPaths
from node import api, control, health
from node.batch_table import BatchTable
from node.chores import Chores
from node.decoding import Decoder
from node.joining import join
from node.memory_ladder import MemoryLadder
from node.memory_limits import MemoryLimits
from node.metrics import NodeMetrics
from node.models import Models, find_models
from node.places import Places
from node.recorder import Recorder
from node.recycling import Recycling
from node.residency import Residency
from node.runs import Runs
from node.scheduler import Pace, Scheduler
from node.services import Services
from node.settings import NodeSettings
from node.status import status_of
from node.telling import Teller
from node.tokens import Tokens, load_or_create_tokens
from node.worker.handle import Worker

log = get_logger(__name__)

WEIGHTS_SHARE = 0.8
"""Share of device memory that weights may take when no budget is set; the rest is for what a denoise needs."""


def build_app(settings: NodeSettings) -> FastAPI:
    """The node as an ASGI app."""
    metrics, later = NodeMetrics(), Later()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            services = await _make_services(settings, metrics, stack)
            app.state.services = services
            log.info("node_ready", node=settings.node.name, models=len(services.models.by_name))
            yield

    app = FastAPI(
        title="Aquatint node", version=VERSION, lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False
    )
    app.state.later = later
    install_error_handlers(app)
    for part in (api, control, health):
        app.include_router(part.api)
    app.add_middleware(LenientPaths)
    app.add_middleware(RequestContext, later=later, observe=metrics.http.observe)
    return app


async def _make_services(settings: NodeSettings, metrics: NodeMetrics, stack: AsyncExitStack) -> Services:
    own = settings.node
    catalog = await Catalog.open(settings.catalog_url, secret_key=load_or_create_secret_key(settings.secret_key_path))
    stack.push_async_callback(catalog.close)
    assets = open_asset_store(settings.asset_store_url)
    stack.push_async_callback(assets.close)
    links = AssetLinks(await catalog.secrets.get_or_create(SECRET_NAME, lambda: secrets.token_urlsafe(32)))
    # In a thread: thousands of headers on a network disk take a while, and signals must be heard meanwhile.
    models = await asyncio.to_thread(find_models, settings.models_dirs)
    await _tell_catalog(catalog, models)
    pace = Pace()
    teller = Teller(lambda: status_of(services), holds_runs=lambda: bool(scheduler.jobs))

    def on_load(model: str, seconds: float, succeeded: bool) -> None:
        metrics.loaded(model, succeeded)
        if succeeded:
            pace.learn_load(model, seconds)
        teller.changed()

    def on_lost() -> None:
        residency.forget_all()
        teller.changed()

    worker = Worker(
        device=own.device,
        engine=models.main_engine,
        threads=own.threads,
        tuning=settings.tuning,
        compiled_path=settings.compiled_path,
        on_lost=on_lost,
    )
    residency = Residency(
        worker,
        budget_bytes=lambda: own.memory_budget_bytes or weights_budget_bytes(worker.device),
        max_resident=own.max_resident,
        on_load=on_load,
    )
    await worker.start()
    stack.push_async_callback(worker.close)
    batches = None
    if own.batching == "auto":
        batches = BatchTable(settings.batch_table_path, lambda: worker.device.name if worker.device is not None else None)
    scheduler = Scheduler(
        max_queued=own.max_queued,
        pace=pace,
        is_resident=residency.is_resident,
        batch_size=batches.size if batches is not None else lambda shape, pictures: 1,
        joins=batches.joins if batches is not None else lambda more, at_work: None,
    )
    recorder = Recorder(catalog, assets, node=own.name)
    ladder = MemoryLadder(residency, MemoryLimits(settings.memory_limits_path), dtype=own.dtype, offload=own.offload)
    runs = Runs(
        models=models,
        worker=worker,
        ladder=ladder,
        scheduler=scheduler,
        pace=pace,
        recorder=recorder,
        links=links,
        metrics=metrics,
        node=own.name,
        decoder=Decoder(max_pixels=settings.max_upload_pixels),
        embed_parameters=own.embed_parameters,
        preset=own.preset,
        batches=batches,
    )
    places = Places(
        lambda: {job.run_id: not job.off_device for job in scheduler.jobs},
        lambda: status_of(services),
        is_open=lambda: not (scheduler.draining or teller.leaving),
    )
    scheduler.on_change = places.on_change = teller.changed
    tokens = Tokens(own.token) if own.token else load_or_create_tokens(settings.token_path)
    if own.join_url is not None:
        run_beside("join", join(settings, tokens), stack)
    if batches is not None:
        run_beside("batch table", batches.keep(), stack)
    run_beside("loop lag", metrics.http.watch_loop(), stack)
    run_beside("heartbeat", recorder.beat(), stack)
    run_beside("time", catalog.keep_time(), stack)
    run_beside("idle unload", _unload_idle(residency, own.idle_unload_s), stack)
    recycling = Recycling(worker, residency, scheduler, allowed_bytes=own.worker_leak_bytes)
    run_beside("recycling", recycling.watch(), stack)
    run_beside("preload", _preload(settings, models, worker, residency, ladder), stack)
    chores = Chores()
    stack.push_async_callback(chores.close)
    services = Services(
        settings=settings,
        tokens=tokens,
        catalog=catalog,
        assets=assets,
        links=links,
        models=models,
        worker=worker,
        residency=residency,
        ladder=ladder,
        scheduler=scheduler,
        pace=pace,
        runs=runs,
        metrics=metrics,
        teller=teller,
        places=places,
        chores=chores,
        batches=batches,
    )
    return services


async def _tell_catalog(catalog: Catalog, models: Models) -> None:
    """Write down what this node can serve, so that it can be looked up when the node is gone."""
    for model in models:
        await catalog.models.upsert(
            name=model.name,
            family=model.checkpoint.family.value,
            profile=model.profile.name,
            licence=model.profile.licence,
            capabilities=model.capabilities,
            files=model.files,
        )


async def _preload(settings: NodeSettings, models: Models, worker: Worker, residency: Residency, ladder: MemoryLadder) -> None:
    """Load and pin what the operator wants loaded."""
    if not settings.node.preload:
        return
    device = await worker.wait_ready()
    for name in settings.node.preload:
        model = models.get(name)
        if model is None:
            log.error("preload_unknown_model", model=name)
            continue
        try:
            await residency.ensure(ladder.plan(model, device).order, pin=True)
        except AquatintError as error:
            log.error("preload_failed", model=name, reason=error.message)


def weights_budget_bytes(device: DeviceStatus | None) -> int | None:
    """Device memory that weights may take when the operator set no budget; None while the device is not known."""
    return None if device is None else int(device.memory_total_bytes * WEIGHTS_SHARE)


async def _unload_idle(residency: Residency, idle_s: float) -> None:
    """Look now and then for models nobody uses any more, for ever."""
    while idle_s > 0:
        await asyncio.sleep(min(idle_s / 2, 30.0))
        try:
            await residency.unload_idle(idle_s)
        except AquatintError as error:
            log.warning("idle_unload_failed", reason=error.message)
