"""Requests whose client does not wait: accepted at once, carried by whichever router is there, ended when asked."""

import asyncio
import base64
import io
from datetime import timedelta
from typing import Any

import httpx
import pytest
from PIL import Image

from common.catalog import RunStatus
from common.clock import utc_now
from common.images_api import Size
from router.placement import Health
from tests.fakes.node import MODEL, Faults, pixels_for
from tests.router.conftest import USER_KEY, House, MakeHouse, MakeRouter, until

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
ASYNC = {"prefer": "respond-async"}


def png(colour: str = "teal") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(out, "PNG")
    return out.getvalue()


async def start(house: House, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    asked = {"prompt": "a cat", "model": MODEL, **fields}
    return await house.client.post(GENERATIONS, json=asked, headers=ASYNC | (headers or {}))


async def ended(client: httpx.AsyncClient, run_id: str) -> dict[str, Any]:
    """The run, once it has ended."""
    async with asyncio.timeout(20):
        while (run := (await client.get(f"/v1/runs/{run_id}")).json())["status"] in ("queued", "running"):
            await asyncio.sleep(0.02)
    return dict(run)


async def test_an_async_request_is_answered_with_its_run_and_the_run_with_its_pictures(make_house: MakeHouse):
    house = await make_house("a")
    house.nodes["a"].faults.seconds = 0.3

    promised = await start(house, n=2, seed=41)
    run_id = promised.json()["id"]
    early = await house.client.get(f"{promised.headers['location']}/answer")
    run = await ended(house.client, run_id)
    answer = await house.client.get(f"/v1/runs/{run_id}/answer")

    assert promised.status_code == 202
    assert promised.headers["location"] == f"/v1/runs/{run_id}"
    assert promised.headers["preference-applied"] == "respond-async"
    assert promised.json()["status"] in ("queued", "running")
    assert (early.status_code, early.headers["retry-after"]) == (202, "1")
    assert run["status"] == "succeeded"
    assert [image["seed"] for image in run["images"]] == [41, 42]
    first = await house.client.get(run["images"][0]["url"])
    assert base64.b64decode(answer.json()["data"][0]["b64_json"]) == first.content
    drawn = Image.open(io.BytesIO(first.content)).getpixel((0, 0))
    assert drawn == pixels_for("a cat", 41, Size(1, 1)).getpixel((0, 0))


async def test_the_progress_of_an_async_run_can_be_watched(make_house: MakeHouse):
    house = await make_house("a", node_depth=0)
    house.nodes["a"].faults.seconds = 60

    first, second = (await start(house)).json()["id"], (await start(house)).json()["id"]
    await until(lambda: bool(house.nodes["a"].jobs) and len(house.services.queue) == 1)

    at_node = (await house.client.get(f"/v1/runs/{first}")).json()
    waiting = (await house.client.get(f"/v1/runs/{second}")).json()
    assert (at_node["phase"], at_node["step"], at_node["steps"]) == ("running", 0, 4)
    assert (waiting["status"], waiting["phase"], waiting["position"]) == ("queued", "queued", 1)


async def test_uploads_are_kept_until_their_run_has_ended_and_no_longer(make_house: MakeHouse):
    house = await make_house("a")
    house.nodes["a"].faults.seconds = 0.3
    mask = io.BytesIO()
    Image.new("RGBA", (32, 32)).save(mask, "PNG")
    files = {"image": ("a.png", png(), "image/png"), "mask": ("m.png", mask.getvalue(), "image/png")}

    promised = await house.client.post(EDITS, data={"prompt": "x", "model": MODEL}, files=files, headers=ASYNC)
    run_id = promised.json()["id"]
    record = await house.catalog.async_runs.get(run_id)
    assert record is not None
    hashes = {sha256 for _, sha256 in record.inputs}
    kept = await house.catalog.runs.stored(hashes)
    run = await ended(house.client, run_id)

    assert (promised.status_code, run["status"]) == (202, "succeeded")
    assert house.nodes["a"].uploads == [png(), mask.getvalue()]
    assert (len(hashes), kept) == (2, hashes)
    async with asyncio.timeout(10):
        while await house.catalog.runs.stored(hashes):
            await asyncio.sleep(0.02)


async def test_a_queued_run_is_cancelled_at_once_and_never_begins(make_house: MakeHouse):
    house = await make_house("a", node_depth=0)
    house.nodes["a"].faults.seconds = 60
    await start(house)
    await until(lambda: bool(house.nodes["a"].jobs))
    run_id = (await start(house)).json()["id"]
    await until(lambda: len(house.services.queue) == 1)

    cancelled = await house.client.delete(f"/v1/runs/{run_id}")
    again = await house.client.delete(f"/v1/runs/{run_id}")

    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    assert (again.status_code, again.json()["status"]) == (200, "cancelled")
    await until(lambda: len(house.services.queue) == 0)
    assert run_id not in house.nodes["a"].started
    assert (await house.client.get(f"/v1/runs/{run_id}/answer")).status_code == 409


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_running_run_is_stopped_at_its_node_by_whichever_router_is_asked(
    make_house: MakeHouse, another_router: MakeRouter, is_async: bool
):
    house = await make_house("a")
    other, _ = await another_router()
    house.nodes["a"].faults.seconds = 60
    waiting = asyncio.create_task(start(house, headers={} if is_async else {"prefer": ""}))
    await until(lambda: bool(house.nodes["a"].jobs))
    run_id = house.nodes["a"].started[0]

    reply = await other.delete(f"/v1/runs/{run_id}")

    assert (reply.status_code, reply.json()["status"]) == (200, "cancelled")
    await until(lambda: house.nodes["a"].cancelled == [run_id] and not house.nodes["a"].jobs)
    assert (await waiting).status_code == (202 if is_async else 499)
    assert (await house.catalog.runs.get(run_id)).status is RunStatus.CANCELLED


async def test_what_has_ended_cannot_be_cancelled_and_what_is_anothers_does_not_exist(make_house: MakeHouse):
    house = await make_house("a")
    run_id = (await house.generate()).json()["id"]

    mine = await house.client.delete(f"/v1/runs/{run_id}")
    async with httpx.AsyncClient(base_url=house.url, headers={"authorization": f"Bearer {USER_KEY}"}) as stranger:
        replies = [
            await stranger.get(f"/v1/runs/{run_id}"),
            await stranger.get(f"/v1/runs/{run_id}/answer"),
            await stranger.delete(f"/v1/runs/{run_id}"),
        ]

    assert (mine.status_code, mine.json()["error"]["code"]) == (409, "run_ended")
    assert [reply.status_code for reply in replies] == [404, 404, 404]


async def test_an_async_run_that_fails_says_why(make_house: MakeHouse):
    house = await make_house("a")
    house.nodes["a"].faults = Faults("error_500", times=1)

    run = await ended(house.client, (await start(house)).json()["id"])
    answer = await house.client.get(f"/v1/runs/{run['id']}/answer")

    assert (run["status"], run["error"]["code"]) == ("failed", "engine_failed")
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "engine_failed")


async def test_an_async_run_waits_for_a_node_that_is_away(make_house: MakeHouse):
    house = await make_house("a", no_capacity_wait_s=0.1)
    house.nodes["a"].faults.mode = "status_500"
    await until(lambda: house.services.registry.get("a").health is Health.OFFLINE)

    run_id = (await start(house)).json()["id"]
    await until(lambda: run_id in house.services.dispatcher.held)
    await until(lambda: run_id not in house.services.dispatcher.held)
    put_back = await house.catalog.runs.get(run_id)
    house.nodes["a"].faults.mode = "none"

    assert put_back.status is RunStatus.QUEUED
    assert (await ended(house.client, run_id))["status"] == "succeeded"


async def test_an_async_run_has_its_time_however_long_it_waited_before(make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch):
    house = await make_house("a", no_capacity_wait_s=0.1, run_timeout_s=2)
    monkeypatch.setattr("router.async_runs.PUT_BACK_FOR_S", 0.1)
    house.nodes["a"].faults.mode = "status_500"
    await until(lambda: house.services.registry.get("a").health is Health.OFFLINE)

    run_id = (await start(house)).json()["id"]
    created_at = (await house.catalog.runs.get(run_id)).created_at
    await until(lambda: utc_now() - created_at > timedelta(seconds=2))
    house.nodes["a"].faults.mode = "none"

    assert (await ended(house.client, run_id))["status"] == "succeeded"


async def test_async_runs_go_on_at_another_router_when_theirs_stops(make_house: MakeHouse, another_router: MakeRouter):
    house = await make_house("a", node_depth=0)
    house.nodes["a"].faults.seconds = 60
    files = {"image": ("a.png", png("red"), "image/png")}
    running = (await start(house)).json()["id"]
    await until(lambda: bool(house.nodes["a"].jobs))
    posted = await house.client.post(EDITS, data={"prompt": "x", "model": MODEL}, files=files, headers=ASYNC)
    queued = posted.json()["id"]
    await house.stop()
    house.nodes["a"].faults.seconds = 0.01

    other, _ = await another_router()
    runs = [await ended(other, run_id) for run_id in (running, queued)]

    assert [run["status"] for run in runs] == ["succeeded", "succeeded"]
    assert house.nodes["a"].started.count(queued) == 1
    assert house.nodes["a"].uploads == [png("red")]
    images = [len((await house.catalog.runs.get(run_id)).images) for run_id in (running, queued)]
    assert images == [1, 1]


async def test_two_routers_carry_each_run_once(make_house: MakeHouse, another_router: MakeRouter):
    house = await make_house("a", "b", async_at_once=2)
    await another_router(async_at_once=2)

    ids = [(await start(house, size="16x16")).json()["id"] for _ in range(12)]
    runs = [await ended(house.client, run_id) for run_id in ids]

    assert {run["status"] for run in runs} == {"succeeded"}
    assert sorted(run_id for node in house.nodes.values() for run_id in node.started) == sorted(ids)


async def test_a_sweep_leaves_waiting_async_runs_alone(make_house: MakeHouse):
    house = await make_house("a")
    house.nodes["a"].faults.seconds = 60
    run_id = (await start(house)).json()["id"]

    report = await house.catalog.runs.sweep(older_than_s=-1)

    assert run_id not in report.runs_closed


async def test_the_same_async_request_again_gets_the_same_run(make_house: MakeHouse):
    house = await make_house("a")
    named = {"idempotency-key": "one"}

    first, again = await start(house, headers=named), await start(house, headers=named)
    done = await ended(house.client, first.json()["id"])
    later, other = await start(house, headers=named), await start(house, headers=named, seed=7)

    assert (again.status_code, again.headers["idempotent-replayed"]) == (202, "true")
    assert {reply.json()["id"] for reply in (first, again, later)} == {done["id"]}
    assert other.status_code == 422
    assert len(house.nodes["a"].started) == 1


async def test_more_async_runs_than_may_be_open_are_refused_and_not_recorded(make_house: MakeHouse):
    house = await make_house("a", max_async_open=1)
    house.nodes["a"].faults.seconds = 60
    await start(house)

    reply = await start(house, headers={"x-request-id": "refused"})

    assert (reply.status_code, reply.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(reply.headers["retry-after"]) <= 60
    assert len(await house.catalog.runs.list()) == 1


async def test_a_request_that_waits_for_its_answer_can_be_cancelled_as_well(make_house: MakeHouse):
    house = await make_house("a", node_depth=0)
    house.nodes["a"].faults.seconds = 60
    first, second = [asyncio.create_task(house.generate()) for _ in range(2)]
    await until(lambda: bool(house.nodes["a"].jobs) and len(house.services.queue) == 1)
    [waiting_id] = [ticket.run_id for ticket in house.services.queue.line]

    await house.client.delete(f"/v1/runs/{waiting_id}")
    await house.client.delete(f"/v1/runs/{house.nodes['a'].started[0]}")

    replies = [await first, await second]
    assert [(reply.status_code, reply.json()["error"]["code"]) for reply in replies] == [(499, "cancelled")] * 2
    assert waiting_id not in house.nodes["a"].started
    await until(lambda: len(house.nodes["a"].cancelled) == 1)


async def test_a_stream_is_its_own_report_of_progress(make_house: MakeHouse):
    house = await make_house("a")

    reply = await start(house, stream=True)

    assert (reply.status_code, "preference-applied" in reply.headers) == (200, False)
    assert await house.catalog.async_runs.get(reply.headers["x-run-id"]) is None


async def test_a_router_that_is_told_to_stop_takes_on_no_more_and_leaves_what_it_accepts_to_another(
    make_house: MakeHouse, another_router: MakeRouter
):
    house = await make_house("a", async_at_once=1)
    house.nodes["a"].faults.seconds = 1
    carried = (await start(house)).json()["id"]
    await until(lambda: bool(house.nodes["a"].started))
    waiting = (await start(house)).json()["id"]
    house.services.async_carrier.retire()

    accepted = await start(house)
    assert accepted.status_code == 202
    assert (await ended(house.client, carried))["status"] == "succeeded"
    assert house.nodes["a"].started == [carried]

    client, _ = await another_router()
    assert (await ended(client, waiting))["status"] == "succeeded"
    assert (await ended(client, accepted.json()["id"]))["status"] == "succeeded"
