"""A finished run is answered even if its node is not there any more to do it. Stand-ins are processes here: they die."""

import asyncio
import base64
import hashlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openai import AsyncOpenAI

from common.catalog import AttemptStatus, RunStatus
from common.ports import hold_port
from router.placement import Health
from router.wire import pouring
from tests.e2e.conftest import answers, wait_for
from tests.fakes.node import MODEL
from tests.router.conftest import ADMIN_KEY, House, MakeHouse, until


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
async def house(make_house: MakeHouse, processes: list[subprocess.Popen[bytes]], catalog_url: str, tmp_path: Path) -> House:
    """A router with two stand-ins, each a process of its own."""
    house = await make_house(probe_timeout_s=0.5)
    for name in ("a", "b"):
        port = hold_port()
        arguments = ["--port", str(port), "--name", name, "--home", str(tmp_path), "--database-url", catalog_url]
        processes.append(subprocess.Popen([sys.executable, "-m", "tests.fakes.node", *arguments]))
        url = f"http://127.0.0.1:{port}"
        await asyncio.to_thread(wait_for, lambda url=url: answers(f"{url}/node/v1/status"), what="a stand-in")
        added = await house.client.post("/admin/nodes", json={"name": name, "url": url})
        assert added.json()["state"] == "online"
    return house


async def fault(house: House, name: str, mode: str, **more: float) -> None:
    url = house.services.registry.get(name).record.url
    async with httpx.AsyncClient() as client:
        (await client.post(f"{url}/fake", json={"mode": mode, "times": 1, **more})).raise_for_status()


async def test_a_node_that_dies_after_it_stored_its_pictures_is_answered_for_from_the_catalog(house: House):
    await fault(house, "a", "finish_then_die")

    reply = await house.generate(n=2, seed=41)

    assert reply.status_code == 200
    run = await house.catalog.runs.get(reply.json()["id"])
    assert [(a.node, a.status) for a in run.attempts] == [("a", AttemptStatus.SUCCEEDED)]
    assert [item["seed"] for item in reply.json()["data"]] == [41, 42]
    digests = [hashlib.sha256(base64.b64decode(item["b64_json"])).hexdigest() for item in reply.json()["data"]]
    assert digests == [image.sha256 for image in run.images]


@pytest.mark.parametrize("previews", [0, 2])
async def test_a_stream_whose_node_dies_after_it_stored_its_picture_is_a_stream_from_the_catalog(house: House, previews: int):
    await fault(house, "a", "finish_then_die")

    reply = await house.generate(stream=True, partial_images=previews, seed=41)

    assert (reply.status_code, reply.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    kind, told = reply.text.rstrip().splitlines()
    assert kind == "event: image_generation.completed"
    event = json.loads(told.removeprefix("data: "))
    run = await house.catalog.runs.get(reply.headers["x-run-id"])
    assert hashlib.sha256(base64.b64decode(event["b64_json"])).hexdigest() == run.images[0].sha256
    await until(lambda: not house.services.dispatcher.held)
    assert not house.services.registry.get("a").ours


@pytest.mark.parametrize("how", ["die_in_preview", "die_in_picture"])
async def test_a_stream_whose_node_dies_in_the_middle_of_an_event_ends_with_the_whole_picture(house: House, how: str):
    await fault(house, "a", how)
    sdk = AsyncOpenAI(base_url=f"{house.url}/v1", api_key=ADMIN_KEY, max_retries=0)
    asked = {"prompt": "a cat", "model": MODEL, "size": "512x512", "extra_body": {"seed": 41}}

    stream = await sdk.images.generate(stream=True, partial_images=1, **asked)  # type: ignore[call-overload]
    events = [event async for event in stream]
    await sdk.close()

    kinds = [event.type.removeprefix("image_generation.") for event in events]
    assert kinds == (["completed"] if how == "die_in_preview" else ["partial_image", "completed"])
    run = (await house.catalog.runs.list(limit=1))[0]
    assert hashlib.sha256(base64.b64decode(events[-1].b64_json)).hexdigest() == run.images[0].sha256


@pytest.mark.parametrize("how", ["finish_then_die", "half_then_die"])
async def test_a_part_whose_node_dies_once_it_is_made_is_answered_for_from_the_catalog(house: House, how: str):
    await fault(house, "b", how)

    reply = await house.generate(n=4, size="512x512", seed=41)

    assert (reply.status_code, reply.headers["x-parts"]) == (200, "2+2")
    assert [item["seed"] for item in reply.json()["data"]] == [41, 42, 43, 44]
    run = await house.catalog.runs.get(reply.json()["id"])
    assert [[a.status for a in part.attempts] for part in run.parts] == [[AttemptStatus.SUCCEEDED]] * 2
    digests = [hashlib.sha256(base64.b64decode(item["b64_json"])).hexdigest() for item in reply.json()["data"]]
    assert digests == [image.sha256 for image in run.images]


async def test_a_node_that_dies_during_a_run_costs_one_attempt(house: House):
    await fault(house, "a", "die")

    reply = await house.generate()

    assert reply.status_code == 200
    run = await house.catalog.runs.get(reply.json()["id"])
    assert [(a.node, a.status, a.error_code) for a in run.attempts] == [
        ("a", AttemptStatus.FAILED, "connection_lost"),
        ("b", AttemptStatus.SUCCEEDED, None),
    ]


async def test_a_node_that_hangs_is_given_up_and_its_late_result_is_refused(
    house: House, processes: list[subprocess.Popen[bytes]]
):
    await fault(house, "a", "none", seconds=1.0)
    request = asyncio.create_task(house.generate())
    await until(lambda: bool((status := house.services.registry.get("a").status) and status.jobs))
    processes[0].send_signal(signal.SIGSTOP)

    reply = await request

    assert reply.status_code == 200
    processes[0].send_signal(signal.SIGCONT)
    await until(lambda: house.services.registry.get("a").health is Health.ONLINE)
    run = await house.catalog.runs.get(reply.json()["id"])
    assert run.status is RunStatus.SUCCEEDED
    assert [(a.node, a.status) for a in run.attempts] == [("a", AttemptStatus.FAILED), ("b", AttemptStatus.SUCCEEDED)]
    assert len(run.images) == 1


@pytest.mark.parametrize("least_bytes", [1, pouring.LEAST_BYTES], ids=["poured", "read"])
async def test_an_answer_that_breaks_off_is_completed_from_the_catalog(
    house: House, monkeypatch: pytest.MonkeyPatch, least_bytes: int
):
    monkeypatch.setattr(pouring, "LEAST_BYTES", least_bytes)
    await fault(house, "a", "half_then_die")

    reply = await house.generate(n=2, seed=41)

    run = await house.catalog.runs.get(reply.json()["id"])
    digests = [hashlib.sha256(base64.b64decode(item["b64_json"])).hexdigest() for item in reply.json()["data"]]
    assert digests == [image.sha256 for image in run.images]
    assert len(run.attempts) == 1
