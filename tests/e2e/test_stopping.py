"""A router that is told to stop: once, and work ends in good order; twice, and it is gone, and says what it left."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from common.ports import hold_port
from tests.e2e.conftest import KEY, Machine, Started, answers, wait_for
from tests.fakes.node import MODEL

HEADERS = {"authorization": f"Bearer {KEY}"}


@pytest.fixture
def stand_in(machine: Machine) -> Iterator[str]:
    """A stand-in for a node, as a process; its URL."""
    assert machine.run("db", "upgrade").returncode == 0
    port = hold_port()
    arguments = ["--port", str(port), "--name", "a", "--home", str(machine.home)]
    database = f"sqlite+aiosqlite:///{machine.home / 'catalog.db'}"
    process = subprocess.Popen([sys.executable, "-m", "tests.fakes.node", *arguments, "--database-url", database])
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: answers(f"{url}/node/v1/status"), what="the stand-in")
        yield url
    finally:
        process.kill()
        process.wait()


def router_before(machine: Machine, node: str, *, work_s: float, **more: str) -> Started:
    """A router that knows the node, whose runs take `work_s`."""
    router = machine.router(**more)
    added = httpx.post(f"{router.url}/admin/nodes", json={"name": "a", "url": node}, headers=HEADERS, timeout=30)
    assert added.json()["state"] == "online", added.text
    httpx.post(f"{node}/fake", json={"mode": "none", "seconds": work_s}).raise_for_status()
    return router


def told(node: str) -> dict[str, list[str]]:
    """What the stand-in has begun, and what it was told to end."""
    answer: dict[str, list[str]] = httpx.post(f"{node}/fake", json={"mode": "none", "seconds": 60}, timeout=10).json()
    return answer


async def asked(router: Started) -> httpx.Response:
    async with httpx.AsyncClient(base_url=router.url, headers=HEADERS, timeout=120) as client:
        return await client.post("/v1/images/generations", json={"prompt": "a cat", "model": MODEL})


async def begun(node: str, count: int) -> None:
    await asyncio.to_thread(wait_for, lambda: len(told(node)["started"]) == count, what="the node to begin")


async def test_a_second_sigterm_stops_at_once_and_the_runs_say_so(machine: Machine, stand_in: str):
    router = router_before(machine, stand_in, work_s=60)
    running = asyncio.create_task(asked(router))
    await begun(stand_in, 1)

    router.popen.send_signal(signal.SIGTERM)
    await asyncio.to_thread(wait_for, lambda: not answers(f"{router.url}/health"), what="the router to accept no more")
    assert not running.done()
    code = await asyncio.to_thread(router.end)
    reply = await running

    assert code == 0
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "unavailable")
    assert 1 <= int(reply.headers["retry-after"]) <= 60
    await asyncio.to_thread(wait_for, lambda: len(told(stand_in)["cancelled"]) == 1, what="the node to be told")
    again = machine.router()
    run_id = told(stand_in)["started"][0]
    async with httpx.AsyncClient(base_url=again.url, headers=HEADERS, timeout=30) as client:
        run = (await client.get(f"/v1/runs/{run_id}")).json()
    assert (run["status"], run["error"]["code"]) == ("failed", "interrupted")


async def test_a_run_longer_than_the_drain_is_interrupted_and_told(machine: Machine, stand_in: str):
    router = router_before(machine, stand_in, work_s=60, AQUATINT__ROUTER__DRAIN_S="1")
    running = asyncio.create_task(asked(router))
    await begun(stand_in, 1)

    code = await asyncio.to_thread(router.end)

    assert code == 0
    assert (await running).status_code == 503
    await asyncio.to_thread(wait_for, lambda: len(told(stand_in)["cancelled"]) == 1, what="the node to be told")
