"""Positions, times foreseen, deadlines, priorities, and bounds in seconds, through a whole router."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from common.catalog import Limits
from router.api import images
from router.wishes import Priority
from tests.fakes.node import MODEL
from tests.router.conftest import House, MakeHouse, until

SECONDS = {"size": "1000x1000", "num_inference_steps": 1}
"""One megapixel-step, which the stand-in says it takes a second for; pictures it makes as fast as it is told to."""


async def post(house: House, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
    body = {"prompt": "x", "model": MODEL} | SECONDS | fields
    return await house.client.post("/v1/images/generations", json=body, headers=headers or {})


@asynccontextmanager
async def busy(house: House, *, waiting: int) -> AsyncIterator[list[asyncio.Task[httpx.Response]]]:
    """The only node holds one run that does not end, and so many wait."""
    house.nodes["a"].faults.seconds = 60
    requests = [asyncio.create_task(post(house)) for _ in range(waiting + 1)]
    await until(lambda: bool(house.nodes["a"].jobs) and len(house.services.queue) == waiting)
    try:
        yield requests
    finally:
        for request in requests:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)


async def test_answers_say_at_which_place_they_were_and_when_they_were_foreseen(make_house: MakeHouse):
    house = await make_house("a", node_depth=0)
    house.nodes["a"].faults.seconds = 0.5

    first, second = await asyncio.gather(post(house), post(house))

    told = sorted((reply.headers["x-queue-position"], float(reply.headers["x-eta-s"])) for reply in (first, second))
    assert [place for place, _ in told] == ["0", "1"]
    assert told[0][1] == 1.0
    assert 1.0 < told[1][1] <= 2.0
    exposed = (await house.client.get("/metrics")).text
    assert 'aquatint_prediction_ratio_count{of="answer"} 2.0' in exposed


async def test_a_run_that_waits_tells_its_place_and_time_to_who_looks(make_house: MakeHouse):
    house = await make_house("a", node_depth=0)

    async with busy(house, waiting=2):
        runs = (await house.client.get("/v1/runs")).json()["data"]
        promised = await post(house, {"prefer": "respond-async"})
        run_id = promised.json()["id"]
        await until(lambda: house.services.queue.foreseen(run_id) is not None)
        shown = (await house.client.get(f"/v1/runs/{run_id}")).json()

        by_place = {run.get("position", 0): run for run in runs}
        assert sorted(by_place) == [0, 1, 2]
        assert by_place[0]["phase"] == "running"
        assert by_place[1]["eta_s"] < by_place[2]["eta_s"]
        assert (shown["phase"], shown["position"]) == ("queued", 3)
        assert shown["eta_s"] > by_place[2]["eta_s"] - 1
        await house.client.delete(f"/v1/runs/{run_id}")


async def test_a_stream_that_waits_tells_its_place_in_comments(make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(images, "EVENTS_AFTER_S", 0.05)
    house = await make_house("a", node_depth=0)

    async with busy(house, waiting=1):
        body = {"prompt": "x", "model": MODEL, "stream": True} | SECONDS
        async with house.client.stream("POST", "/v1/images/generations", json=body) as reply:
            line = await anext(reply.aiter_lines())

            assert line.startswith(": waiting x-queue-position=2 x-eta-s=")
            assert reply.headers["x-queue-position"] == "2"


async def test_a_deadline_that_cannot_be_met_is_refused_at_once_with_the_estimate(make_house: MakeHouse):
    house = await make_house("a", node_depth=0)

    too_long = await post(house, {"x-deadline-s": "2"}, num_inference_steps=5)
    async with busy(house, waiting=3):
        too_late = await post(house, {"x-deadline-s": "2"})

    assert (too_long.status_code, too_long.json()["error"]["code"]) == (504, "deadline_too_soon")
    assert "about 5.0 s" in too_long.json()["error"]["message"]
    # Nothing would make it quicker, while those before it will be gone.
    assert too_long.headers["x-should-retry"] == "false"
    assert (too_late.status_code, too_late.headers["x-should-retry"]) == (504, "true")
    assert 1 <= int(too_late.headers["retry-after"]) <= 60
    assert [asked.num_inference_steps for asked in house.nodes["a"].asked] == [1]


async def test_a_run_that_waits_past_its_deadline_ends(make_house: MakeHouse):
    house = await make_house("a", node_depth=0)

    async with busy(house, waiting=0):
        # The node is late: it had foreseen that the place would be free in time.
        reply = await post(house, {"x-deadline-s": "3"})

    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert reply.headers["x-should-retry"] == "false"


async def test_a_run_that_would_wait_for_longer_than_may_be_is_refused(make_house: MakeHouse):
    house = await make_house("a", node_depth=0, max_wait_s=2)

    async with busy(house, waiting=2):
        reply = await post(house)

    assert (reply.status_code, reply.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(reply.headers["retry-after"]) <= 60
    assert "Please try again in" in reply.json()["error"]["message"]


async def test_urgent_work_goes_first_as_far_as_its_key_may_ask_for_it(make_house: MakeHouse):
    house = await make_house("a", node_depth=0)
    await house.catalog.keys.create(name="vip", scopes=["user"], secret="vip-key-0123456789", limits=Limits(priority="high"))
    await house.catalog.keys.create(name="low", scopes=["user"], secret="low-key-0123456789", limits=Limits(priority="low"))

    async with busy(house, waiting=1) as requests:
        for key, count in (("low-key-0123456789", 2), ("vip-key-0123456789", 3)):
            headers = {"authorization": f"Bearer {key}", "x-priority": "high"}
            requests.append(asyncio.create_task(post(house, headers)))
            await until(lambda count=count: len(house.services.queue) == count)
        places = [ticket.priority for ticket in house.services.queue.line]

    assert places == [Priority.HIGH, Priority.NORMAL, Priority.LOW]


async def test_a_key_may_have_a_deadline_of_its_own(make_house: MakeHouse):
    house = await make_house("a")
    await house.catalog.keys.create(name="k", scopes=["user"], secret="own-key-0123456789", limits=Limits(deadline_s=2))
    headers = {"authorization": "Bearer own-key-0123456789"}

    by_key = await post(house, headers, num_inference_steps=5)
    by_request = await post(house, headers | {"x-deadline-s": "30"}, num_inference_steps=5)

    assert (by_key.status_code, by_request.status_code) == (504, 200)
    assert not [name for name in by_request.headers if name.startswith("x-ratelimit")]


@pytest.mark.parametrize(
    "headers",
    [
        {"x-deadline-s": "soon"},
        {"x-deadline-s": "0"},
        {"x-deadline-s": "nan"},
        {"x-deadline-s": "1e9"},
        {"x-priority": "HIGHEST"},
        {"x-priority": "high", "prefer": "respond-async"},
    ],
)
async def test_wishes_that_cannot_be_read_are_refused_by_name(make_house: MakeHouse, headers: dict[str, str]):
    house = await make_house("a")

    reply = await post(house, headers)

    assert (reply.status_code, reply.json()["error"]["param"]) == (400, next(iter(headers)))


async def test_what_no_node_could_ever_take_is_refused_at_once_and_not_worth_a_retry(make_house: MakeHouse):
    house = await make_house("a", "b", no_capacity_wait_s=60)
    house.nodes["a"].loras, house.nodes["b"].loras = ["one"], ["other"]
    await until(lambda: house.services.registry.abilities(MODEL).loras == {"one", "other"})

    reply = await post(house, loras=[{"name": "one"}, {"name": "other"}])

    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "no_capacity")
    assert reply.headers["x-should-retry"] == "false"
