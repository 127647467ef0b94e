"""A whole router in this process, before stand-in nodes on real sockets."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from common.catalog import Catalog, load_or_create_secret_key, open_asset_store
from common.dialling import trusted
from common.images_api import AssetLinks
from common.images_api.links import SECRET_NAME
from router import wire
from router.app import build_app
from router.services import Services
from router.settings import RouterSection, RouterSettings
from tests.fakes.node import MODEL, FakeNode, build_fake
from tests.serving import served

ADMIN_KEY = "test-admin-key-0123456789"
USER_KEY = "test-user-key-0123456789"


@dataclass
class House:
    """A router with its nodes, and a client that holds an admin's key."""

    client: httpx.AsyncClient
    services: Services
    nodes: dict[str, FakeNode]
    catalog: Catalog
    url: str
    stop: Callable[[], Coroutine[Any, Any, None]]
    """End the router; its nodes and the catalog stay."""

    async def generate(self, prompt: str = "a cat", **fields: Any) -> httpx.Response:
        """One request."""
        return await self.client.post("/v1/images/generations", json={"prompt": prompt, "model": MODEL, **fields})


def client_of(url: str, *, timeout_s: float) -> httpx.AsyncClient:
    """One that holds an admin's key."""
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout_s, verify=trusted())


MakeHouse = Callable[..., Coroutine[Any, Any, House]]


@pytest.fixture
async def make_house(catalog_url: str, tmp_path: Path) -> AsyncGenerator[MakeHouse, None]:
    """`await make_house("a", "b", max_queued=4)`: a router with nodes a and b; settings of the router by name.

    common: settings of all processes.
    """
    from contextlib import AsyncExitStack

    async with AsyncExitStack() as stack:

        async def make(
            *names: str, models: dict[str, list[str]] | None = None, common: dict[str, Any] | None = None, **settings: Any
        ) -> House:
            secret = load_or_create_secret_key(tmp_path / "secret.key")
            catalog = await Catalog.open(catalog_url, secret_key=secret)
            links = AssetLinks(await catalog.secrets.get_or_create(SECRET_NAME, lambda: "shared-secret"))
            stack.push_async_callback(catalog.close)
            assets = open_asset_store(str(tmp_path / "assets"))
            await catalog.keys.create(name="admin", scopes=["admin", "user"], secret=ADMIN_KEY)
            await catalog.keys.create(name="user", scopes=["user"], secret=USER_KEY)
            nodes = {}
            for name in names:
                nodes[name] = FakeNode(name, catalog, assets, (models or {}).get(name, [MODEL]), links)
                url = await stack.enter_async_context(served(build_fake(nodes[name])))
                await catalog.nodes.add(name=name, url=url, token="token")
            fast = {"probe_interval_s": 0.1, "no_capacity_wait_s": 0.5} | settings
            app = build_app(
                RouterSettings(
                    home=tmp_path,
                    database_url=catalog_url,
                    assets_url=str(tmp_path / "assets"),
                    router=RouterSection(**fast),
                    **(common or {}),
                )
            )
            running = await stack.enter_async_context(AsyncExitStack())
            url = await running.enter_async_context(served(app))
            client = await stack.enter_async_context(client_of(url, timeout_s=30))
            house = House(client, app.state.services, nodes, catalog, url, running.aclose)
            await until(lambda: all(n.status is not None for n in house.services.registry.nodes()) and _known(house, names))
            return house

        yield make


MakeRouter = Callable[..., Coroutine[Any, Any, tuple[httpx.AsyncClient, Services]]]


@pytest.fixture
async def another_router(catalog_url: str, tmp_path: Path) -> AsyncGenerator[MakeRouter, None]:
    """`await another_router()`: a second router on the catalog and nodes of a house; its client and its parts."""
    from contextlib import AsyncExitStack

    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> tuple[httpx.AsyncClient, Services]:
            own = RouterSection(**{"probe_interval_s": 0.1} | settings)
            assets = str(tmp_path / "assets")
            app = build_app(RouterSettings(home=tmp_path, database_url=catalog_url, assets_url=assets, router=own))
            url = await stack.enter_async_context(served(app))
            client = await stack.enter_async_context(client_of(url, timeout_s=60))
            await until(lambda: all(node.status is not None for node in app.state.services.registry.nodes()))
            return client, app.state.services

        yield start


def _known(house: House, names: tuple[str, ...]) -> bool:
    return len(house.services.registry.nodes()) == len(names)


async def until(condition: Callable[[], bool], *, within_s: float = 10) -> None:
    """Wait for something to become true."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
async def pool() -> AsyncIterator[wire.Pool]:
    pool = wire.Pool(connect_timeout_s=3)
    yield pool
    pool.close()
