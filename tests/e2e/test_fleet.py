"""A router and real nodes, on both kinds of catalog, while things die."""

import asyncio
import json
import os
import signal
import subprocess
import time
from typing import Any

import httpx
import pytest

from tests.e2e.conftest import KEY, Machine, Started, answers, wait_for

HEADERS = {"authorization": f"Bearer {KEY}"}
TOKEN = "node-token-0123456789"


def fleet(machine: Machine, *names: str, **more: str) -> tuple[Started, dict[str, Started]]:
    """A router with these nodes, which it knows."""
    nodes = {name: machine.node(name, TOKEN) for name in names}
    router = machine.router(**more)
    for name, node in nodes.items():
        body = {"name": name, "url": node.url, "token": TOKEN}
        httpx.post(f"{router.url}/admin/nodes", json=body, headers=HEADERS, timeout=30).raise_for_status()
    return router, nodes


async def generate(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    body = {"prompt": "a red cube", "size": "64x64", "num_inference_steps": 10, **fields}
    return await client.post("/v1/images/generations", json=body)


def busy(node: Started) -> bool:
    """Whether a run is on the node's device right now."""
    status = httpx.get(f"{node.url}/node/v1/status", headers={"authorization": f"Bearer {TOKEN}"}, timeout=5).json()
    return any(job["phase"] == "running" for job in status["jobs"])


async def until_busy(*nodes: Started) -> Started:
    """Wait until one of these nodes has a run on its device; which."""
    hit: list[Started] = []

    def found() -> bool:
        hit.extend(node for node in nodes if busy(node))
        return bool(hit)

    await asyncio.to_thread(wait_for, found, what="a node to have work")
    return hit[0]


def worker_of(node: Started) -> int:
    """Process id of a node's worker."""
    found = subprocess.run(["pgrep", "-P", str(node.pid), "-f", "node.worker"], capture_output=True, text=True, check=True)
    return int(found.stdout.split()[0])


async def test_forty_requests_are_all_answered_although_a_node_is_killed_among_them(machine_on: Machine):
    router, nodes = fleet(machine_on, "a", "b")
    limits = httpx.Limits(max_connections=50)
    async with httpx.AsyncClient(base_url=router.url, headers=HEADERS, timeout=300, limits=limits) as client:
        requests = [asyncio.create_task(generate(client, seed=number)) for number in range(40)]
        await asyncio.wait(requests, return_when=asyncio.FIRST_COMPLETED)
        wait_for(lambda: busy(nodes["a"]), what="node a to have work")
        nodes["a"].kill()
        replies = await asyncio.gather(*requests)

        assert [reply.status_code for reply in replies] == [200] * 40
        runs = [(await client.get(f"/v1/runs/{reply.json()['id']}")).json() for reply in replies]
    assert {run["status"] for run in runs} == {"succeeded"}
    assert {attempt["node"] for run in runs for attempt in run["attempts"]} == {"a", "b"}
    assert any(a["status"] in ("failed", "abandoned") and a["node"] == "a" for run in runs for a in run["attempts"])
    assert [len(run["images"]) for run in runs] == [1] * 40


async def test_when_the_only_node_is_killed_the_client_is_told_and_may_try_again(machine: Machine):
    router, nodes = fleet(machine, "a")
    async with httpx.AsyncClient(base_url=router.url, headers=HEADERS, timeout=120) as client:
        request = asyncio.create_task(generate(client, size="256x256", num_inference_steps=100))
        await until_busy(nodes["a"])
        nodes["a"].kill()
        reply = await request
        run = (await client.get("/admin/nodes")).json()

    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (502, "node_failed")
    assert reply.headers["x-should-retry"] == "true"
    assert 1 <= int(reply.headers["retry-after"]) <= 60
    assert run["data"][0]["state"] in ("error", "offline")


async def test_a_worker_that_is_killed_costs_one_attempt_and_not_its_node(machine: Machine):
    router, nodes = fleet(machine, "a", "b")
    async with httpx.AsyncClient(base_url=router.url, headers=HEADERS, timeout=120) as client:
        request = asyncio.create_task(generate(client, size="256x256", num_inference_steps=100))
        hit = await until_busy(*nodes.values())
        os.kill(worker_of(hit), signal.SIGKILL)
        reply = await request

        assert reply.status_code == 200
        run = (await client.get(f"/v1/runs/{reply.json()['id']}")).json()
        assert [a["status"] for a in run["attempts"]] == ["failed", "succeeded"]
        wait_for(lambda: answers(f"{hit.url}/ready"), what="the node's new worker")
        assert all(r.status_code == 200 for r in await asyncio.gather(*(generate(client) for _ in range(4))))


async def test_a_router_that_is_killed_leaves_no_run_open(machine_on: Machine):
    quick = {"AQUATINT__ROUTER__SWEEP_INTERVAL_S": "0.5", "AQUATINT__ROUTER__ORPHAN_AFTER_S": "2"}
    router, nodes = fleet(machine_on, "a", **quick)
    async with httpx.AsyncClient(base_url=router.url, headers=HEADERS, timeout=120) as client:
        asked = {"size": "256x256", "num_inference_steps": 100}
        requests = [asyncio.create_task(generate(client, **asked)) for _ in range(3)]
        await until_busy(nodes["a"])
        held = [run["id"] for run in (await client.get("/v1/runs")).json()["data"]]
        router.kill()
        await asyncio.gather(*requests, return_exceptions=True)

    again = machine_on.router(**quick)

    assert len(held) == 3
    async with httpx.AsyncClient(base_url=again.url, headers=HEADERS, timeout=120) as client:
        end = time.monotonic() + 60
        ended: set[str] = set()
        while len(ended) < 3 and time.monotonic() < end:
            states = {run_id: (await client.get(f"/v1/runs/{run_id}")).json()["status"] for run_id in held}
            ended = {run_id for run_id, state in states.items() if state not in ("queued", "running")}
        assert len(ended) == 3, states
        wait_for(lambda: not busy(nodes["a"]), what="the node to stop working for nobody")
        assert (await generate(client)).status_code == 200


async def test_sigterm_lets_what_is_in_flight_end(machine: Machine):
    router, nodes = fleet(machine, "a")
    async with httpx.AsyncClient(base_url=router.url, headers=HEADERS, timeout=120) as client:
        request = asyncio.create_task(generate(client, num_inference_steps=60))
        await until_busy(nodes["a"])
        code = asyncio.create_task(asyncio.to_thread(router.end))

        assert (await request).status_code == 200
        assert await code == 0


def test_a_node_works_without_a_router(machine: Machine):
    assert machine.run("db", "upgrade").returncode == 0
    node = machine.node("alone", TOKEN)
    headers = {"authorization": f"Bearer {TOKEN}"}

    reply = httpx.post(f"{node.url}/v1/images/generations", json={"prompt": "x", "size": "64x64"}, headers=headers, timeout=120)

    assert reply.status_code == 200
    assert httpx.get(f"{node.url}/v1/models", headers=headers).json()["data"]
    assert httpx.get(f"{node.url}/v1/models").status_code == 401


@pytest.mark.parametrize("command", ["nodes", "keys", "models"])
def test_a_command_that_reaches_no_router_says_where_it_looked(machine: Machine, command: str):
    result = machine.run(command, "list", "--url", "http://127.0.0.1:9")

    assert result.returncode == 1
    assert "http://127.0.0.1:9" in result.stderr
    assert json.dumps(result.stderr).count("Traceback") == 0
