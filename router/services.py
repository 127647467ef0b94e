"""The router's parts, made once in `app.py`; a handler names those it needs."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated

from fastapi import Depends, Request
from starlette.datastructures import URL

from common.catalog import AssetStore, Catalog
from common.images_api import AssetLinks
from common.later import Later
from common.web.headers import headers_of
from router.accepting import Acceptance
from router.answers import Answers
from router.async_runs import AsyncCarrier
from router.carried import Carried
from router.decisions import Decisions
from router.dispatch import Dispatcher
from router.jobs.runner import JobRunner
from router.metrics import RouterMetrics
from router.model_names import ModelNames
from router.node_client import NodeClient
from router.probe import Prober
from router.queue import Queue
from router.quotas import Quotas
from router.registry import Registry
from router.result_cache import ResultCache
from router.settings import RouterSettings
from router.splitting import Splitter
from router.webhooks import Webhooks


@dataclass(frozen=True, slots=True)
class Services:
    """All of them."""

    settings: RouterSettings
    catalog: Catalog
    assets: AssetStore
    links: AssetLinks
    registry: Registry
    prober: Prober
    queue: Queue
    client: NodeClient
    answers: Answers
    dispatcher: Dispatcher
    splitter: Splitter
    decisions: Decisions
    acceptance: Acceptance
    carried: Carried
    async_carrier: AsyncCarrier
    webhooks: Webhooks
    quotas: Quotas
    jobs: JobRunner
    results: ResultCache
    names: ModelNames
    metrics: RouterMetrics
    later: Later

    def retire(self) -> None:
        """The process is told to stop: nothing long is begun any more."""
        self.async_carrier.retire()
        self.jobs.retire()


def public_url(request: Request, services: Services) -> str:
    """Base of the links the client gets: as configured, else the very address it called, so that browsers and
    clients that refuse foreign origins follow them."""
    if services.settings.public_url:
        return services.settings.public_url
    scope = request.scope
    server = scope.get("server")
    return _called_address(scope["scheme"], headers_of(scope).get(b"host"), None if server is None else tuple(server))


@lru_cache(maxsize=256)
def _called_address(scheme: str, host: bytes | None, server: tuple[str, int | None] | None) -> str:
    headers = [] if host is None else [(b"host", host)]
    url = URL(scope={"type": "http", "scheme": scheme, "server": server, "path": "/", "headers": headers})
    return f"{url.scheme}://{url.netloc}"


def services_of(request: Request) -> Services:
    """The services of the app a request came to."""
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(services_of)]
