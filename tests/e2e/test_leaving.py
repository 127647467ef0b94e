"""Clients that leave: a real node stops their work at the next step, and what waits for a place is never begun."""

import asyncio
from typing import Any

import httpx

from common.node_api import JobStatus, NodeStatus
from tests.e2e.conftest import Machine, Started
from tests.e2e.test_fleet import HEADERS, TOKEN, fleet, generate

LONG: dict[str, Any] = {"size": "512x512", "num_inference_steps": 100}
"""On the demonstration checkpoint; a step takes far longer than word of a client that left."""


class Watched:
    """What a node says that it does."""

    def __init__(self, node: Started, client: httpx.AsyncClient) -> None:
        self._url = f"{node.url}/node/v1/status"
        self._client = client

    async def job(self) -> JobStatus | None:
        """The one on the device, or the next one."""
        told = await self._client.get(self._url, headers={"authorization": f"Bearer {TOKEN}"})
        return next(iter(NodeStatus.model_validate_json(told.content).jobs), None)

    async def step(self, at_least: int) -> int:
        """The step it is at, once it is at this one."""
        while (job := await self.job()) is None or (job.step or 0) < at_least:
            await asyncio.sleep(0.01)
        assert job.step is not None
        return job.step

    async def last_step(self) -> int:
        """The last one that it makes before it has no work any more."""
        last = 0
        while (job := await self.job()) is not None:
            last = max(last, job.step or 0)
        return last


async def left(request: asyncio.Task[Any]) -> None:
    """Close a client's connection."""
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)


async def held(client: httpx.AsyncClient, count: int) -> list[str]:
    """The ids of the router's runs, once there are so many."""
    while len(runs := (await client.get("/v1/runs")).json()["data"]) < count:
        await asyncio.sleep(0.02)
    return [run["id"] for run in runs]


async def ended(client: httpx.AsyncClient, run_id: str) -> dict[str, Any]:
    """A run, once it is over."""
    while (run := (await client.get(f"/v1/runs/{run_id}")).json())["status"] in ("queued", "running"):
        await asyncio.sleep(0.02)
    assert isinstance(run, dict)
    return run


async def test_a_run_whose_client_leaves_ends_at_the_next_step_and_one_that_waits_is_never_begun(machine: Machine):
    router, nodes = fleet(machine, "a")
    async with httpx.AsyncClient(base_url=router.url, headers=HEADERS, timeout=300) as client:
        node = Watched(nodes["a"], client)
        running = asyncio.create_task(generate(client, **LONG))
        (run_id,) = await held(client, 1)
        await node.step(1)
        waiting = [asyncio.create_task(generate(client, **LONG)) for _ in range(3)]
        others = [each for each in await held(client, 4) if each != run_id]
        await asyncio.gather(*map(left, waiting))
        never = [await ended(client, each) for each in others]

        at = await node.step((await node.step(1)) + 1)
        await left(running)
        last = await node.last_step()
        stopped = await ended(client, run_id)
        again = await generate(client, size="64x64", num_inference_steps=1)

    assert last <= at + 1
    assert (stopped["status"], stopped["images"]) == ("cancelled", [])
    assert [(run["status"], run["started"]) for run in never] == [("cancelled", None)] * 3
    assert again.status_code == 200
