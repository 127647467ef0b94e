"""Requests that come again under one Idempotency-Key: the first answer again, and nothing made twice."""

import asyncio
import base64
import io
from datetime import timedelta
from typing import Any

import httpx
import pytest
from PIL import Image
from sqlalchemy import update

from common.catalog import RunStatus
from common.catalog.tables import Run
from common.clock import utc_now
from tests.fakes.node import MODEL, Faults
from tests.router.conftest import USER_KEY, House, MakeHouse, MakeRouter, until

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
REPLAYED = "idempotent-replayed"


def png(colour: str = "teal") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(out, "PNG")
    return out.getvalue()


async def ask(client: httpx.AsyncClient, name: str, **fields: Any) -> httpx.Response:
    return await client.post(GENERATIONS, json={"prompt": "a cat", "model": MODEL, **fields}, headers={"idempotency-key": name})


def made(house: House) -> int:
    return sum(len(node.started) for node in house.nodes.values())


@pytest.mark.parametrize("response_format", ["b64_json", "url"])
async def test_the_same_request_again_gets_the_same_answer_to_the_byte(make_house: MakeHouse, response_format: str):
    house = await make_house("a")

    first = await ask(house.client, "one", n=2, response_format=response_format)
    again = await ask(house.client, "one", response_format=response_format, n=2)
    other = await ask(house.client, "two", n=2, response_format=response_format)

    assert (first.status_code, again.status_code) == (200, 200)
    assert again.content == first.content
    assert (again.headers[REPLAYED], first.headers.get(REPLAYED)) == ("true", None)
    assert (again.headers["x-run-id"], again.headers["content-type"]) == (first.json()["id"], "application/json")
    assert again.headers["x-image-seeds"] == ",".join(str(item["seed"]) for item in first.json()["data"])
    assert other.json()["id"] != first.json()["id"]
    assert made(house) == 2


async def test_another_request_under_the_same_key_is_refused(make_house: MakeHouse):
    house = await make_house("a")
    await ask(house.client, "one")

    reply = await ask(house.client, "one", seed=7)

    assert (reply.status_code, reply.json()["error"]["code"]) == (422, "idempotency_key_reused")
    assert reply.json()["error"]["type"] == "invalid_request_error"
    assert made(house) == 1


async def test_a_form_is_known_by_its_fields_and_files_whatever_its_boundary(make_house: MakeHouse):
    house = await make_house("a")

    async def edit(picture: bytes) -> httpx.Response:
        files = {"image": ("a.png", picture, "image/png")}
        data = {"prompt": "x", "model": MODEL}
        return await house.client.post(EDITS, data=data, files=files, headers={"idempotency-key": "one"})

    first, again, other = await edit(png()), await edit(png()), await edit(png("red"))

    assert first.request.headers["content-type"] != again.request.headers["content-type"]
    assert again.content == first.content
    assert (other.status_code, made(house)) == (422, 1)


async def test_keys_of_two_clients_do_not_meet(make_house: MakeHouse):
    house = await make_house("a")
    first = await ask(house.client, "one")

    async with httpx.AsyncClient(base_url=house.url, headers={"authorization": f"Bearer {USER_KEY}"}) as other:
        second = await ask(other, "one", seed=7)

    assert (second.status_code, REPLAYED in second.headers) == (200, False)
    assert second.json()["id"] != first.json()["id"]


async def test_while_the_first_is_in_progress_the_second_is_told_to_come_back(make_house: MakeHouse):
    house = await make_house("a")
    house.nodes["a"].faults.seconds = 60
    first = asyncio.create_task(ask(house.client, "one"))
    await until(lambda: bool(house.nodes["a"].jobs))

    same, other = await ask(house.client, "one"), await ask(house.client, "one", seed=7)

    assert (same.status_code, same.json()["error"]["code"]) == (409, "idempotency_key_in_use")
    assert 1 <= int(same.headers["retry-after"]) <= 60
    assert same.headers["x-should-retry"] == "true"
    assert other.status_code == 422
    first.cancel()


async def test_a_key_whose_client_left_is_free_again(make_house: MakeHouse):
    house = await make_house("a")
    house.nodes["a"].faults.seconds = 60
    first = asyncio.create_task(ask(house.client, "one"))
    await until(lambda: bool(house.nodes["a"].jobs))
    first.cancel()
    await until(lambda: bool(house.nodes["a"].cancelled))
    house.nodes["a"].faults.seconds = 0.01

    replies = [await ask(house.client, "one")]
    while replies[-1].status_code == 409:
        replies.append(await ask(house.client, "one"))

    assert (replies[-1].status_code, REPLAYED in replies[-1].headers) == (200, False)


async def test_a_wrong_request_is_not_remembered_whoever_found_it_wrong(make_house: MakeHouse):
    house = await make_house("a")

    by_router = await ask(house.client, "one", n=0)
    by_node = await ask(house.client, "one", size="16384x16384")
    right = await ask(house.client, "one")

    assert (by_router.status_code, by_node.status_code, right.status_code) == (400, 400, 200)


async def test_a_failure_that_another_try_would_repeat_is_repeated_without_one(make_house: MakeHouse):
    house = await make_house("a")
    house.nodes["a"].faults = Faults("error_500", times=1)

    first, again = await ask(house.client, "one"), await ask(house.client, "one")

    assert (first.status_code, again.status_code) == (500, 500)
    assert again.json() == first.json()
    assert again.headers[REPLAYED] == "true"
    assert again.headers["x-should-retry"] == "false"
    assert made(house) == 1


async def test_a_failure_that_may_pass_is_not_remembered(make_house: MakeHouse):
    house = await make_house("a")
    house.nodes["a"].faults = Faults("error_503", times=1)

    first, again = await ask(house.client, "one"), await ask(house.client, "one")

    assert (first.status_code, first.headers.get("x-should-retry")) == (502, None)
    assert (again.status_code, REPLAYED in again.headers) == (200, False)


async def test_a_run_that_nobody_carries_any_more_gives_its_key_to_the_next_request(make_house: MakeHouse):
    house = await make_house("a")
    house.nodes["a"].faults.seconds = 60
    first = asyncio.create_task(ask(house.client, "one"))
    await until(lambda: bool(house.nodes["a"].jobs))
    run_id = house.nodes["a"].started[0]
    async with house.catalog._database.write() as session:
        await session.execute(update(Run).where(Run.id == run_id).values(heartbeat_at=utc_now() - timedelta(minutes=1)))
    house.nodes["a"].faults.seconds = 0.01

    second = await ask(house.client, "one")

    assert second.status_code == 200
    dead = await house.catalog.runs.get(run_id)
    assert (dead.status, dead.error_code) == (RunStatus.FAILED, "interrupted")
    first.cancel()


async def test_the_picture_of_a_stream_is_streamed_again(make_house: MakeHouse):
    house = await make_house("a")

    first = await ask(house.client, "one", stream=True, partial_images=2)
    again = await ask(house.client, "one", stream=True, partial_images=2)

    assert again.headers["content-type"].startswith("text/event-stream")
    assert again.text.count("event: ") == 1
    assert again.content == first.content[-len(again.content) :]
    assert made(house) == 1


async def test_a_stream_that_fails_leaves_its_key_free(make_house: MakeHouse):
    house = await make_house("a")
    house.nodes["a"].faults = Faults("fail_in_stream", times=1)

    first = await ask(house.client, "one", stream=True)

    # This stand-in had stored the picture before it told of a failure: that picture is what the key stands for.
    assert "event: error" in first.text
    again = await ask(house.client, "one", stream=True)
    assert "image_generation.completed" in again.text


@pytest.mark.parametrize("name", ["", "x" * 256, "tab\there"])
async def test_a_key_that_cannot_be_kept_is_refused(make_house: MakeHouse, name: str):
    house = await make_house("a")

    reply = await ask(house.client, name)

    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_idempotency_key")


async def test_an_answer_outlives_its_router_and_is_forgotten_after_its_time(make_house: MakeHouse, another_router: MakeRouter):
    house = await make_house("a")
    first = await ask(house.client, "one")
    second, _ = await another_router()

    again = await ask(second, "one")
    await house.catalog.idempotency.forget(older_than_s=0)
    anew = await ask(second, "one")

    assert again.content == first.content
    assert anew.json()["id"] != first.json()["id"]


@pytest.mark.timeout(900)
async def test_two_hundred_keys_at_two_routers_at_once_make_two_hundred_pictures(
    make_house: MakeHouse, another_router: MakeRouter
):
    house = await make_house("a", "b", max_queued=400)
    other, _ = await another_router(max_queued=400)
    for node in house.nodes.values():
        node.faults.seconds = 0.0
        node.concurrency = 8

    # All of this is one process, two routers and two nodes included: more at once would only wait for one another.
    at_once = asyncio.Semaphore(4)

    async def answered(client: httpx.AsyncClient, name: str) -> dict[str, Any]:
        async with asyncio.timeout(120):
            while (reply := await ask(client, name, size="16x16")).status_code == 409:
                await asyncio.sleep(0.05)
        assert reply.status_code == 200, reply.text
        return dict(reply.json())

    async def asked_twice(name: str) -> list[dict[str, Any]]:
        async with at_once:
            return await asyncio.gather(answered(house.client, name), answered(other, name))

    pairs = await asyncio.gather(*(asked_twice(f"key-{i}") for i in range(200)))

    assert all(one == two for one, two in pairs)
    assert len({one["id"] for one, _ in pairs}) == 200
    assert made(house) == 200
    assert base64.b64decode(pairs[0][0]["data"][0]["b64_json"]).startswith(b"\x89PNG")
