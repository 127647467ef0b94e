"""The catalog goes away and comes back: nothing is accepted that nobody could find again, and nothing hangs."""

import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from common.catalog import Catalog, migrate, open_asset_store
from router.app import build_app
from router.settings import RouterSection, RouterSettings
from tests.conftest import start_postgres
from tests.fakes.node import MODEL, FakeNode, build_fake
from tests.router.conftest import ADMIN_KEY, until
from tests.serving import served

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def postgres() -> Iterator[Any]:
    """A server of this test's own. Its socket needs a short path."""
    folder = Path(tempfile.mkdtemp(prefix="aquatint-outage-"))
    server = start_postgres(folder / "data")
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def house(postgres: Any, tmp_path: Path) -> AsyncGenerator[tuple[httpx.AsyncClient, FakeNode], None]:
    url = postgres.get_uri()
    await migrate(url)
    async with AsyncExitStack() as stack:
        catalog = await Catalog.open(url, secret_key=None)
        stack.push_async_callback(catalog.close)
        await catalog.keys.create(name="admin", scopes=["admin", "user"], secret=ADMIN_KEY)
        node = FakeNode("a", catalog, open_asset_store(str(tmp_path / "assets")), [MODEL])
        node_url = await stack.enter_async_context(served(build_fake(node)))
        await catalog.nodes.add(name="a", url=node_url, token=None)
        settings = RouterSettings(
            home=tmp_path, database_url=url, assets_url=str(tmp_path / "assets"), router=RouterSection(probe_interval_s=0.1)
        )
        app = build_app(settings)
        router_url = await stack.enter_async_context(served(app))
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=router_url, headers=headers, timeout=60))
        await until(lambda: app.state.services.registry.get("a").status is not None)
        yield client, node


async def test_without_a_catalog_requests_are_refused_at_once_and_afterwards_all_is_well(
    postgres: Any, house: tuple[httpx.AsyncClient, FakeNode]
):
    client, node = house
    asked = {"prompt": "a cat", "model": MODEL}
    assert (await client.post("/v1/images/generations", json=asked)).status_code == 200
    postgres.stop()

    began_s = time.monotonic()
    refused = await client.post("/v1/images/generations", json=asked)
    took_s = time.monotonic() - began_s
    health, ready = await client.get("/health"), await client.get("/ready")

    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "catalog_unavailable")
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert took_s < 15
    assert (health.status_code, ready.status_code) == (200, 503)
    assert "catalog" in str(ready.json()["reasons"])
    assert len(node.started) == 1

    postgres.ensure_postgres_running()
    async with httpx.AsyncClient(base_url=client.base_url, headers=client.headers, timeout=60) as again:
        replies = []
        while not replies or replies[-1].status_code != 200:
            replies.append(await again.post("/v1/images/generations", json=asked))
            assert len(replies) < 20, replies[-1].text
    assert len(node.started) == 2
