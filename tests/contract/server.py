"""A router with one stand-in node, for clients in other processes. `python -m tests.contract.server PORT HOME`.

PORT may be 0: any that is free. It prints a line when it is ready: its own address, and that of the node, where faults can
be set (see tests.fakes.node).
"""

import asyncio
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from common.catalog import Catalog, migrate, open_asset_store, sqlite_url
from common.images_api import AssetLinks
from common.images_api.links import SECRET_NAME
from common.logs import configure_logging
from router.app import build_app
from router.settings import RouterSection, RouterSettings
from tests.fakes.node import FakeNode, build_fake
from tests.router.conftest import ADMIN_KEY, USER_KEY
from tests.serving import served

MODEL = "aquatint-demo"
AWAY = "away"
"""A model that some node had and none has now."""
MAX_QUEUED = 6
"""Few, so that a program can fill the queue."""


async def main(port: int, home: Path) -> None:
    """Until killed."""
    configure_logging(level="warning", style="json", process="contract")
    url = sqlite_url(home / "catalog.db")
    await migrate(url)
    async with AsyncExitStack() as stack:
        catalog = await Catalog.open(url)
        stack.push_async_callback(catalog.close)
        links = AssetLinks(await catalog.secrets.get_or_create(SECRET_NAME, lambda: "contract"))
        await catalog.keys.create(name="user", scopes=["user"], secret=USER_KEY)
        await catalog.keys.create(name="admin", scopes=["admin", "user"], secret=ADMIN_KEY)
        await catalog.models.upsert(name=AWAY, family="fake", profile="fake", licence=None, capabilities={}, files=[])
        node = FakeNode("a", catalog, open_asset_store(str(home / "assets")), [MODEL, "org/other:1"], links)
        node_url = await stack.enter_async_context(served(build_fake(node)))
        await catalog.nodes.add(name="a", url=node_url, token=None)
        own = RouterSection(probe_interval_s=0.1, max_queued=MAX_QUEUED)
        app = build_app(RouterSettings(home=home, database_url=url, router=own))
        router_url = await stack.enter_async_context(served(app, port))
        while node_url and app.state.services.registry.get("a").status is None:
            await asyncio.sleep(0.01)
        print(router_url, node_url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2])))
