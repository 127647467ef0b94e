"""Jobs that a node does, asked for by a router and followed to their end."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from common.node_api import ChoreOrder, ChoreStatus
from node.chores import Chores
from tests.fakes.model_sites import silent_site
from tests.router.conftest import House, MakeHouse
from tests.router.test_jobs import start, watched
from tests.serving import served

ROOT = Path(__file__).parents[2]


class FileNode:
    """The part of a node that does chores, on a socket. `chores` anew is a node that was started anew."""

    def __init__(self) -> None:
        self.chores = Chores()
        self.asked = asyncio.Event()
        self.app = FastAPI()
        self.app.post("/node/v1/chores")(self.begin)
        self.app.delete("/node/v1/chores/{name}")(self.end)

    async def begin(self, order: ChoreOrder) -> ChoreStatus:
        self.asked.set()
        return self.chores.begin(order)

    async def end(self, name: str) -> ChoreStatus:
        return await self.chores.end(name)

    async def starts_anew(self) -> None:
        await self.chores.close()
        self.chores = Chores()
        self.asked.clear()
        await self.asked.wait()


@pytest.fixture
async def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[FileNode, str]]:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # Whoever has built checkpoints in this process has set it for good.
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("AQUATINT_HOME", str(tmp_path / "node"))
    monkeypatch.setenv("AQUATINT__NODE__MODELS_DIRS", json.dumps([str(tmp_path)]))
    made = FileNode()
    async with served(made.app) as url:
        yield made, url
    await made.chores.close()


async def ended(house: House, job: str) -> dict[str, Any]:
    events = await watched(house.client, job)
    last: dict[str, Any] = events[-1][2]
    return last


async def test_a_node_reads_its_hashes_for_a_router(make_house: MakeHouse, node: tuple[FileNode, str]):
    house = await make_house()
    await house.catalog.nodes.add(name="files", url=node[1], token="token")

    told = await ended(house, await start(house, "hashes", node="files", verify=True))

    assert told["state"] == "succeeded", told
    assert told["summary"]["result"] == {"files": 0, "read": 0, "changed": []}


async def test_a_pull_is_asked_for_again_of_a_node_that_was_started_anew_and_ends_when_it_is_cancelled(
    make_house: MakeHouse, node: tuple[FileNode, str], monkeypatch: pytest.MonkeyPatch
):
    house = await make_house()
    await house.catalog.nodes.add(name="files", url=node[1], token="token")
    async with silent_site() as (url, _):
        monkeypatch.setenv("HF_ENDPOINT", url)
        job = await start(house, "pull", node="files", source="org/tiny-sd")
        async with asyncio.timeout(60):
            await node[0].asked.wait()
            await node[0].starts_anew()
        await house.client.delete(f"/v1/jobs/{job}")
        told = await ended(house, job)

    assert told["state"] == "cancelled"
    assert told["summary"]["result"] == {}
    assert str(node[0].chores.status(job).state) == "cancelled"


async def test_a_job_for_a_node_that_nobody_knows_fails_with_the_reason(make_house: MakeHouse):
    house = await make_house()

    told = await ended(house, await start(house, "pull", node="nobody", source="org/tiny-sd"))

    assert (told["state"], told["error"]["code"]) == ("failed", "node_not_found")
