"""Makes every part of the router, in order, and closes them in the reverse order."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fastapi import FastAPI

from common.catalog import Catalog, load_or_create_secret_key, open_asset_store
from common.catalog.sweeper import GRACE_S, sweep_runs, sweep_store
from common.errors import AquatintError, CatalogUnavailable
from common.images_api import AssetLinks
from common.images_api.links import SECRET_NAME
from common.images_api.openapi import ERRORS
from common.later import Later
from common.logs import get_logger
from common.version import VERSION
from common.web import RequestContext, install_error_handlers
from common.web.background import run_beside
from common.web.paths import LenientPaths
from router import webhooks as webhook_signing
from router.accepting import Acceptance
from router.answers import Answers
from router.api import admin_aliases, admin_keys, admin_nodes, assets, health, images, jobs, joining, models, runs, webhooks
from router.async_runs import AsyncCarrier
from router.attempts import Attempts
from router.carried import Carried
from router.costs import CostBook
from router.decisions import KEEP_EVERY_S, Decisions
from router.dispatch import Dispatcher
from router.front import Front
from router.garbage import LOOK_EVERY_S, Garbage
from router.jobs.runner import JobRunner
from router.jobs.schedules import schedules_of
from router.metrics import RouterMetrics
from router.model_names import ModelNames
from router.node_client import NodeClient
from router.probe import Prober, look
from router.queue import Queue
from router.quotas import Quotas
from router.registry import Node, Registry
from router.result_cache import ResultCache
from router.services import Services
from router.settings import RouterSettings
from router.splitting import Splitter
from router.webhooks import Webhooks

log = get_logger(__name__)

HEARTBEAT_EVERY_S = 10.0
COSTS_EVERY_S = 60.0
HEARTBEATS = 4
"""Signs of life in the time after which a run without one is closed: at least as many."""


def build_app(settings: RouterSettings) -> FastAPI:
    """The router as an ASGI app."""
    metrics, later = RouterMetrics(), Later()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            services = await _make_services(settings, metrics, later, stack)
            app.state.services = services
            for name, work in _background(services):
                run_beside(name, work, stack)
            # First of all that is closed: interrupted runs need the catalog.
            stack.push_async_callback(services.dispatcher.interrupted)
            log.info("router_ready", nodes=len(services.registry.nodes()))
            yield

    app = Front(
        later=later,
        observe=metrics.http.observe,
        title="Aquatint",
        version=VERSION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses=ERRORS,
    )
    app.state.later = later
    install_error_handlers(app)
    for part in (images, models, assets, runs, webhooks, jobs, admin_nodes, admin_keys, admin_aliases, joining, health):
        app.include_router(part.api)
    app.add_middleware(LenientPaths)
    app.add_middleware(RequestContext, later=later, observe=metrics.http.observe)
    return app


async def _make_services(settings: RouterSettings, metrics: RouterMetrics, later: Later, stack: AsyncExitStack) -> Services:
    own = settings.router
    catalog = await Catalog.open(settings.catalog_url, secret_key=load_or_create_secret_key(settings.secret_key_path))
    stack.push_async_callback(catalog.close)
    assets_store = open_asset_store(settings.asset_store_url)
    stack.push_async_callback(assets_store.close)
    links = AssetLinks(await catalog.secrets.get_or_create(SECRET_NAME, lambda: secrets.token_urlsafe(32)))
    client = NodeClient(connect_timeout_s=own.connect_timeout_s, probe_timeout_s=own.probe_timeout_s)
    stack.push_async_callback(client.aclose)
    registry = Registry(catalog, depth=own.node_depth, costs=CostBook(await catalog.costs.all()))
    await registry.refresh()
    stack.push_async_callback(_kept_at_last, registry)
    queue = Queue(registry, max_queued=own.max_queued, max_wait_s=own.max_wait_s, no_capacity_wait_s=own.no_capacity_wait_s)
    queue.on_wait = metrics.waited
    metrics.watch_queue(lambda: len(queue), queue.predicted_wait_s)

    async def look_again(node: Node) -> bool:
        return await look(node, registry, client)

    answers = Answers(catalog, assets_store, links)
    decisions = Decisions(catalog, metrics)
    stack.push_async_callback(decisions.keep_at_last)
    attempts = Attempts(
        catalog=catalog,
        registry=registry,
        queue=queue,
        client=client,
        answers=answers,
        metrics=metrics,
        look=look_again,
        max_attempts=own.max_attempts,
    )
    dispatcher = Dispatcher(
        attempts=attempts,
        catalog=catalog,
        queue=queue,
        answers=answers,
        metrics=metrics,
        decisions=decisions,
        later=later,
        run_timeout_s=own.run_timeout_s,
    )
    splitter = Splitter(
        dispatcher,
        catalog=catalog,
        queue=queue,
        fleet=registry.fleet,
        answers=answers,
        decisions=decisions,
        metrics=metrics,
        allowed=own.split_runs,
    )
    names = ModelNames(registry, catalog, default=own.default_model)
    acceptance, carried = Acceptance(names, registry, keep_results=own.result_cache), Carried()
    async_carrier = AsyncCarrier(
        catalog=catalog,
        assets=assets_store,
        dispatcher=splitter,
        acceptance=acceptance,
        carried=carried,
        limits=settings.upload_limits,
        at_once=own.async_at_once,
        most_open=own.max_async_open,
        oldest_s=own.async_hours * 3600,
    )
    webhook_secret = await catalog.secrets.get_or_create(webhook_signing.SECRET_NAME, lambda: secrets.token_urlsafe(32))
    return Services(
        settings=settings,
        catalog=catalog,
        assets=assets_store,
        links=links,
        registry=registry,
        prober=Prober(registry, client, interval_s=own.probe_interval_s),
        queue=queue,
        client=client,
        answers=answers,
        dispatcher=dispatcher,
        splitter=splitter,
        decisions=decisions,
        acceptance=acceptance,
        carried=carried,
        async_carrier=async_carrier,
        webhooks=Webhooks(catalog, links, own.webhook_targets, webhook_secret),
        quotas=Quotas(catalog),
        jobs=JobRunner(catalog, settings, schedules_of(own)),
        results=ResultCache(catalog, assets_store, answers),
        names=names,
        metrics=metrics,
        later=later,
    )


async def _kept_at_last(registry: Registry) -> None:
    try:
        await registry.keep_costs()
    except CatalogUnavailable as error:
        log.warning("costs_not_kept", why=error.message)


def _background(services: Services) -> list[tuple[str, Coroutine[Any, Any, None]]]:
    own = services.settings.router

    async def heartbeat() -> None:
        if services.dispatcher.held:
            await services.catalog.runs.heartbeat(list(services.dispatcher.held))

    async def clean() -> None:
        await services.catalog.idempotency.forget(older_than_s=own.idempotency_hours * 3600)
        await sweep_runs(services.catalog, run_timeout_s=own.orphan_after_s)

    async def clean_store() -> None:
        # A job does it where one is scheduled. Bytes younger than an hour stay in any case, and a store can be large.
        if own.sweep_store_days is None:
            await sweep_store(services.catalog, services.assets, grace_s=GRACE_S)

    return [
        ("loop lag", services.metrics.http.watch_loop()),
        ("probe", services.prober.run()),
        ("async runs", services.async_carrier.run()),
        ("webhooks", services.webhooks.run()),
        ("quotas", services.quotas.run()),
        ("jobs", services.jobs.run()),
        ("garbage", _every(LOOK_EVERY_S, Garbage(lambda: len(services.dispatcher.held)).look)),
        ("costs", _every(COSTS_EVERY_S, services.registry.keep_costs)),
        ("decisions", _every(KEEP_EVERY_S, services.decisions.keep)),
        ("heartbeat", _every(min(HEARTBEAT_EVERY_S, own.orphan_after_s / HEARTBEATS), heartbeat)),
        ("time", services.catalog.keep_time()),
        ("sweep", _every(own.sweep_interval_s, clean)),
        ("store sweep", _every(GRACE_S, clean_store)),
    ]


async def _every(interval_s: float, work: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await work()
        except AquatintError as error:
            log.warning("background_work_failed", why=error.message)
        await asyncio.sleep(interval_s)
