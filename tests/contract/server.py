"""A router with one stand-in node, for clients in other processes. `python -m tests.contract.server PORT HOME`."""

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
from tests.router.conftest import USER_KEY, served

MODEL = "aquatint-demo"


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
        node = FakeNode("a", catalog, open_asset_store(str(home / "assets")), [MODEL, "org/other:1"], links)
        node_url = await stack.enter_async_context(served(build_fake(node)))
        await catalog.nodes.add(name="a", url=node_url, token=None)
        app = build_app(RouterSettings(home=home, database_url=url, router=RouterSection(probe_interval_s=0.1)))
        await stack.enter_async_context(served(app, port))
        while node_url and app.state.services.registry.get("a").status is None:
            await asyncio.sleep(0.01)
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2])))
