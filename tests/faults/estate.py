"""What a campaign is waged on: routers and nodes as processes, a catalog, an asset store, and a proxy before each node."""

import asyncio
import inspect
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import httpx
import orjson
from PIL import Image

from common.catalog import AssetStore, Catalog, RunRecord, migrate, open_asset_store
from common.images_api import Size
from common.ports import hold_port
from tests.e2e.conftest import KEY, Machine, Started, new_machine
from tests.fakes.node import MODEL, pixels_for
from tests.faults.catalogs import Database
from tests.faults.proxy import Proxy

HEADERS = {"authorization": f"Bearer {KEY}"}
NODES = ("a", "b", "c")
ROUTERS = 2
STORE_BYTES = 64 * 1024 * 1024
"""Room for every picture of the long form, and soon filled."""
WORK_S = 0.05
"""What a stand-in takes for a run."""
SIZE = Size(64, 64)
"""Of every picture."""
SETTINGS = {
    # Short, so that what a killed router left open is closed within the campaign; all else as installed. Longer than who is
    # stopped in the middle of a transaction holds the rows of a run (6 s) and a sign of life waits for them (4 s).
    "AQUATINT__ROUTER__SWEEP_INTERVAL_S": "1",
    "AQUATINT__ROUTER__ORPHAN_AFTER_S": "15",
    "AQUATINT__LOG_FORMAT": "json",
}


async def until(condition: Callable[[], bool | Awaitable[bool]], *, what: str, within_s: float = 60) -> float:
    """Wait for something outside this process; the seconds that it took."""
    began_s = time.monotonic()
    while True:
        held = condition()
        if await held if inspect.isawaitable(held) else held:
            return time.monotonic() - began_s
        if time.monotonic() - began_s > within_s:
            raise AssertionError(f"waited {within_s:g} s in vain: {what}")
        await asyncio.sleep(0.02)


def monotonic(at: datetime) -> float:
    """On the monotonic clock, which all processes of a machine share, if its other clock is right."""
    return at.timestamp() - time.time() + time.monotonic()


class Estate:
    """See the module. `heal` makes everything well again after a fault."""

    asks: ClassVar[dict[str, Any]] = {"model": MODEL}
    """What every request says besides its own."""
    usual_s: ClassVar[float] = 0.5
    """What an answer takes at most on a machine that has nothing else to do."""

    def __init__(self, machine: Machine, database: Database, catalog: Catalog, assets: AssetStore) -> None:
        self._machine = machine
        self.home = machine.home
        self.database = database
        self.catalog = catalog
        self.assets = assets
        self.router_ports = [hold_port() for _ in range(ROUTERS)]
        self.node_ports = {name: hold_port() for name in NODES}
        self.routers: list[Started] = []
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}
        self.proxies = {name: Proxy(port) for name, port in self.node_ports.items()}
        self.client = httpx.AsyncClient(headers=HEADERS, timeout=30, trust_env=False)

    def router_url(self, index: int) -> str:
        """Where a router listens, whether or not it is there."""
        return f"http://127.0.0.1:{self.router_ports[index]}"

    @property
    def journal(self) -> Path:
        """Where all stand-ins write what they do."""
        return self.home / "journal"

    def events(self) -> list[dict[str, Any]]:
        """What the stand-ins did, in order."""
        return [orjson.loads(line) for line in self.journal.read_bytes().splitlines()] if self.journal.exists() else []

    def events_of(self, runs: list[RunRecord]) -> list[dict[str, Any]]:
        """What nodes did for these runs, and maybe for others: event (begun, left or stored), run_id, attempt, node, at_s."""
        return self.events()

    @staticmethod
    def is_own(prompt: str, seed: int, content: bytes) -> bool:
        """Whether a picture is what a request makes: pictures are a function of the request, though not each byte of the
        file of a flat one (`common/png.py`)."""
        with Image.open(io.BytesIO(content)) as picture:
            return picture.tobytes() == pixels_for(prompt, seed, SIZE).tobytes()

    @property
    def title(self) -> str:
        """For the table."""
        return self.database.kind

    def start_router(self, index: int, **more: str) -> None:
        """A router on its port, which need not listen yet. more: environment variables."""
        arguments = ["router", "--port", str(self.router_ports[index])]
        self.routers[index : index + 1] = [self._machine.start(*arguments, url=self.router_url(index), **SETTINGS, **more)]

    def node_url(self, name: str) -> str:
        """Where a node listens, whether or not it is there."""
        return f"http://127.0.0.1:{self.node_ports[name]}"

    def start_node(self, name: str, **more: str) -> None:
        """A node on its port, which need not listen yet. more: environment variables."""
        arguments = ["--port", str(self.node_ports[name]), "--name", name, "--home", str(self.home)]
        arguments += ["--database-url", self.database.url, "--journal", str(self.journal)]
        with (self.home / f"node-{name}.out").open("ab") as out:
            command = [sys.executable, "-m", "tests.fakes.node", *arguments]
            self.nodes[name] = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **more})

    async def tell_node(self, name: str, mode: str = "none", **more: Any) -> None:
        """Set a stand-in's faults."""
        wanted = {"mode": mode, "seconds": WORK_S, **more}
        (await self.client.post(f"{self.node_url(name)}/fake", json=wanted)).raise_for_status()

    async def node_well(self, name: str) -> None:
        """Returns when a node that was started answers, and holds to the truth."""
        url = f"{self.node_url(name)}/node/v1/status"
        await until(lambda: self.answers(url, 200, 500), what=f"node {name}")
        await self.tell_node(name, phase="ready")

    async def states(self, router: int = 0) -> dict[str, str]:
        """What a router thinks of the nodes; nothing where it cannot look them up just now."""
        told = (await self.client.get(f"{self.router_url(router)}/admin/nodes", headers=HEADERS)).json()
        return {node["name"]: node["state"] for node in told.get("data", [])}

    async def answers(self, url: str, *statuses: int, within_s: float = 2) -> bool:
        """Whether a GET is answered so."""
        try:
            return (await self.client.get(url, timeout=within_s)).status_code in statuses
        except httpx.HTTPError:
            return False

    async def heal(self) -> None:
        """Everything runs, nobody lies, and every router knows it."""
        for proxy in self.proxies.values():
            proxy.heal()
        for name in NODES:
            if name in self.nodes and self.nodes[name].poll() is None:
                self.nodes[name].send_signal(signal.SIGCONT)
            else:
                self.start_node(name)
        for index in range(ROUTERS):
            if index < len(self.routers) and self.routers[index].popen.poll() is None:
                self.routers[index].popen.send_signal(signal.SIGCONT)
            else:
                self.start_router(index)
        for name in NODES:
            await self.node_well(name)
        for index in range(ROUTERS):
            await until(lambda index=index: self.answers(f"{self.router_url(index)}/health", 200), what=f"router {index}")
        await self._registered()
        for index in range(ROUTERS):
            await until(lambda index=index: self.sees_all(index), what=f"router {index} to see every node")

    async def forgive(self) -> None:
        """Start routers anew that hold something against a node: for up to a minute the next fault would not get there."""
        for index in range(ROUTERS):
            told = (await self.client.get(f"{self.router_url(index)}/admin/nodes")).json()
            if any(node["held_off"] for node in told.get("data", [])):
                await asyncio.to_thread(self.routers[index].end)
        await self.heal()

    async def sees_all(self, router: int) -> bool:
        """Whether a router knows that every node is well."""
        states = await self.states(router)
        return len(states) == len(NODES) and set(states.values()) == {"online"}

    def registration(self, name: str) -> dict[str, str]:
        """What routers are told of a node."""
        return {"name": name, "url": self.proxies[name].url}

    async def _registered(self) -> None:
        await until(lambda: self.answers(f"{self.router_url(0)}/admin/nodes", 200), what="the list of nodes")
        known = await self.states()
        for name in NODES:
            if name not in known:
                told = self.registration(name)
                (await self.client.post(f"{self.router_url(0)}/admin/nodes", json=told)).raise_for_status()

    def end(self) -> None:
        """Stop what was started."""
        for node in self.nodes.values():
            node.send_signal(signal.SIGCONT)
            node.kill()
            node.wait()
        for router in self.routers:
            router.popen.send_signal(signal.SIGCONT)


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of its own on `folder`, of a size that can be filled, where this user may mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    size = f"size={STORE_BYTES},mode=0777"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], check=False).returncode == 0
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@asynccontextmanager
async def estate_on(home: Path, database: Database) -> AsyncIterator[Estate]:
    """An estate with `database` for its catalog, which need not have tables yet; everything runs."""
    await migrate(database.url)
    machines = new_machine(home, {"AQUATINT__DATABASE_URL": database.url, "AQUATINT__ASSETS_URL": str(home / "assets")})
    catalog = await Catalog.open(database.url)
    estate = Estate(next(machines), database, catalog, open_asset_store(str(home / "assets")))
    try:
        for proxy in estate.proxies.values():
            await proxy.open()
        with small_disk(home / "assets"):
            await estate.heal()
            yield estate
            estate.end()
    finally:
        estate.end()
        await asyncio.to_thread(lambda: next(machines, None))
        for proxy in estate.proxies.values():
            proxy.close()
        await estate.client.aclose()
        await estate.catalog.close()


__all__ = ["HEADERS", "MODEL", "NODES", "ROUTERS", "SIZE", "WORK_S", "Estate", "estate_on", "monotonic", "until"]
