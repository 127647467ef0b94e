"""An estate of real nodes: two routers, three nodes with the demonstration checkpoint and PostgreSQL, each another user's.

Nothing lies between routers and nodes. Every picture says in its file what it was made from, so that a mix-up shows; what
nodes did is read from the catalog.
"""

import asyncio
import io
import json
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import psutil
from PIL import Image

from common.catalog import AttemptStatus, Catalog, RunRecord, load_or_create_secret_key, migrate, open_asset_store
from tests.e2e.conftest import Machine, new_machine
from tests.faults.catalogs import Database
from tests.faults.estate import NODES, ROUTERS, SETTINGS, Estate, monotonic, until
from tests.faults.users import GROUP_ID, SharedMachine

TOKEN = "node-token-0123456789"
STARTED_WITHIN_S = 180.0
"""A node's, with torch, on a machine that is busy."""
EVENTS = {AttemptStatus.SUCCEEDED: "stored", AttemptStatus.FAILED: "left", AttemptStatus.ABANDONED: "left"}


class RealEstate(Estate):
    """See the module."""

    asks: ClassVar[dict[str, Any]] = {"num_inference_steps": 2}
    usual_s: ClassVar[float] = 5.0

    @property
    def title(self) -> str:
        """For the table."""
        assert isinstance(self._machine, SharedMachine)
        return f"real nodes, {f'{ROUTERS + len(NODES) + 1} users' if self._machine.apart else 'one user'}"

    @staticmethod
    def is_own(prompt: str, seed: int, content: bytes) -> bool:
        """Whether a picture is what a request makes, as its file says."""
        with Image.open(io.BytesIO(content)) as picture:
            made = json.loads(picture.info["aquatint"])
        return (made["prompt"], made["seed"]) == (prompt, seed)

    def events_of(self, runs: list[RunRecord]) -> list[dict[str, Any]]:
        """See Estate: as the catalog has it."""
        events: list[dict[str, Any]] = []
        for run in runs:
            for attempt in run.attempts:
                known = {"run_id": run.id, "attempt": attempt.no, "node": attempt.node}
                if attempt.started_at is not None:
                    events.append({"event": "begun", "at_s": monotonic(attempt.started_at), **known})
                if attempt.finished_at is not None and attempt.status in EVENTS:
                    events.append({"event": EVENTS[attempt.status], "at_s": monotonic(attempt.finished_at), **known})
        return events

    def start_router(self, index: int, **more: str) -> None:
        """See Estate."""
        more = SETTINGS | self._shared(f"router-{index}") | more
        arguments = ["router", "--port", str(self.router_ports[index])]
        self.routers[index : index + 1] = [self._machine.start(*arguments, url=self.router_url(index), **more)]

    def start_node(self, name: str, **more: str) -> None:
        """See Estate."""
        more = self._shared(f"node-{name}") | {"AQUATINT__NODE__TOKEN": TOKEN} | more
        arguments = ["node", "--port", str(self.node_ports[name]), "--name", name, "--device", "cpu"]
        self.nodes[name] = self._machine.start(*arguments, url=self.node_url(name), **more).popen

    async def node_well(self, name: str) -> None:
        """See Estate."""
        await until(lambda: self.answers(f"{self.node_url(name)}/ready", 200), what=f"node {name}", within_s=STARTED_WITHIN_S)

    def worker_of(self, name: str) -> psutil.Process:
        """The process of a node that has the device. Raises: StopIteration: there is none now."""
        children = psutil.Process(self.nodes[name].pid).children()
        return next(child for child in children if "node.worker" in child.cmdline())

    def registration(self, name: str) -> dict[str, str]:
        """See Estate."""
        return {"name": name, "url": self.node_url(name), "token": TOKEN}

    def _shared(self, user: str) -> dict[str, str]:
        assert isinstance(self._machine, SharedMachine)
        return {"AQUATINT_HOME": str(self._machine.folder_of(user)), "AQUATINT__LOG_FORMAT": "json"}


@asynccontextmanager
async def real_estate_on(database: Database) -> AsyncIterator[Estate]:
    """Everything runs, in a folder of its own: the folders of tests are closed to other users."""
    await migrate(database.url)
    with tempfile.TemporaryDirectory(prefix="aquatint-faults-real-") as folder:
        machines = _machine_in(Path(folder), database)
        machine = next(machines)
        assert isinstance(machine, SharedMachine)
        catalog = await Catalog.open(database.url)
        estate = RealEstate(machine, database, catalog, open_asset_store(str(machine.home / "assets")))
        try:
            await estate.heal()
            yield estate
        finally:
            for node in estate.nodes.values():
                node.send_signal(signal.SIGCONT)
            await asyncio.to_thread(lambda: next(machines, None))
            await estate.client.aclose()
            await catalog.close()


def _machine_in(home: Path, database: Database) -> Iterator[Machine]:
    """A machine whose users share pictures, the secret key and PostgreSQL's socket, and may enter its folder."""
    assets, secret_key = home / "assets", home / "secret.key"
    shared = {
        "AQUATINT__DATABASE_URL": database.url,
        "AQUATINT__ASSETS_URL": str(assets),
        "AQUATINT__SECRET_KEY_FILE": str(secret_key),
    }
    for machine in new_machine(home, shared, SharedMachine):
        assert isinstance(machine, SharedMachine)
        home.chmod(0o711)
        assets.mkdir()
        load_or_create_secret_key(secret_key)
        machine.share(assets)
        machine.share(secret_key)
        if machine.apart:
            database.let_in(GROUP_ID)
        yield machine
