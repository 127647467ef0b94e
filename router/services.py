"""The router's parts, made once in `app.py`; a handler names those it needs."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from common.catalog import AssetStore, Catalog
from common.images_api import AssetLinks
from router.answers import Answers
from router.dispatch import Dispatcher
from router.metrics import RouterMetrics
from router.model_names import ModelNames
from router.node_client import NodeClient
from router.probe import Prober
from router.queue import Queue
from router.registry import Registry
from router.settings import RouterSettings


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
    names: ModelNames
    metrics: RouterMetrics


def services_of(request: Request) -> Services:
    """The services of the app a request came to."""
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(services_of)]
