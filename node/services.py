"""The node's parts, made once in `app.py`; a handler names those it needs."""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from common.catalog import AssetStore, Catalog
from common.images_api import AssetLinks
from node.batch_table import BatchTable
from node.chores import Chores
from node.memory_ladder import MemoryLadder
from node.metrics import NodeMetrics
from node.models import Models
from node.places import Places
from node.residency import Residency
from node.runs import Runs
from node.scheduler import Pace, Scheduler
from node.settings import NodeSettings
from node.telling import Teller
from node.tokens import Tokens
from node.worker.handle import Worker


@dataclass(frozen=True, slots=True)
class Services:
    """All of them."""

    settings: NodeSettings
    tokens: Tokens
    """The bearer token of routers and operators."""
    catalog: Catalog
    assets: AssetStore
    links: AssetLinks
    models: Models
    worker: Worker
    residency: Residency
    ladder: MemoryLadder
    scheduler: Scheduler
    pace: Pace
    runs: Runs
    metrics: NodeMetrics
    teller: Teller
    places: Places
    chores: Chores
    batches: BatchTable | None
    """None where batching is off."""


def services_of(request: Request) -> Services:
    """The services of the app a request came to."""
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(services_of)]
