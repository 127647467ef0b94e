"""Limits of API keys: what is let in, what its client is told, and that several routers never give away more than there is."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from common.catalog import Amounts, Catalog, Limits
from router import quotas
from tests.fakes.node import MODEL
from tests.router.conftest import House, MakeHouse, MakeRouter, until

SIZE = "1000x1000"
NOON = datetime(2026, 11, 25, 12, 0, 5, tzinfo=UTC)


async def limited(house: House, **limits: Any) -> httpx.AsyncClient:
    """A client with a new key that has these limits."""
    made = await house.client.post("/admin/keys", json={"name": "limited", "limits": limits})
    assert made.status_code == 201, made.text
    return httpx.AsyncClient(base_url=house.url, headers={"authorization": f"Bearer {made.json()['key']}"}, timeout=60)


async def ask(client: httpx.AsyncClient, **fields: Any) -> httpx.Response:
    headers = fields.pop("headers", None)
    return await client.post("/v1/images/generations", json={"prompt": "x", "model": MODEL, **fields}, headers=headers)


def used(house: House) -> Any:
    return house.catalog.quotas.usage(since="2000-01-01")


async def test_a_key_without_limits_is_told_of_none(make_house: MakeHouse):
    house = await make_house("a")

    reply = await house.generate()

    assert not [name for name in reply.headers if name.startswith("x-ratelimit")]


async def test_requests_per_minute_are_limited_in_openais_words(make_house: MakeHouse):
    house = await make_house("a")
    async with await limited(house, requests_per_minute=2) as client:
        replies = [await ask(client) for _ in range(2)]
        wrong = await ask(client, n=0)
        refused = await ask(client)

    assert [reply.status_code for reply in (*replies, wrong)] == [200, 200, 400]
    told = [reply.headers["x-ratelimit-remaining-requests"] for reply in replies]
    assert (told, replies[0].headers["x-ratelimit-limit-requests"]) == (["1", "0"], "2")
    assert replies[0].headers["x-ratelimit-reset-requests"].endswith("s")
    error = refused.json()["error"]
    assert (refused.status_code, error["type"], error["code"]) == (429, "requests", "rate_limit_exceeded")
    assert "Please try again in" in error["message"]
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"


async def test_pictures_per_day_are_limited_and_a_retry_is_said_to_be_useless(make_house: MakeHouse):
    house = await make_house("a")
    async with await limited(house, images_per_day=3) as client:
        first, too_many, last, none_left = [await ask(client, n=n) for n in (2, 2, 1, 1)]

    assert [reply.status_code for reply in (first, too_many, last, none_left)] == [200, 429, 200, 429]
    error = too_many.json()["error"]
    assert (error["type"], error["code"]) == ("insufficient_quota", "insufficient_quota")
    assert (too_many.headers["x-should-retry"], too_many.headers["x-ratelimit-remaining-images"]) == ("false", "1")
    assert [(row.runs, row.images) for row in await used(house)] == [(2, 3)]


async def test_gpu_seconds_are_let_in_as_predicted_and_billed_as_measured(make_house: MakeHouse):
    house = await make_house("a")
    house.nodes["a"].faults.seconds = 0.25
    async with await limited(house, gpu_seconds_per_day=10) as client:
        # The stand-in says a second for a megapixel-step, and that it took a quarter of one.
        predicted_too_long = await ask(client, size=SIZE, steps=11)
        replies = [await ask(client, size=SIZE, steps=6) for _ in range(3)]

    assert (predicted_too_long.status_code, predicted_too_long.json()["error"]["code"]) == (429, "insufficient_quota")
    assert [reply.status_code for reply in replies] == [200, 200, 200]
    [row] = await used(house)
    assert (row.runs, row.gpu_s) == (3, pytest.approx(0.75))


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_in_flight_is_limited_until_it_has_been_answered(make_house: MakeHouse, stream: bool):
    house = await make_house("a")
    house.nodes["a"].faults.seconds = 60
    async with await limited(house, max_in_flight=1) as client:
        first = asyncio.create_task(ask(client, stream=stream))
        await until(lambda: bool(house.nodes["a"].jobs))
        second = await ask(client)
        first.cancel()
        await until(lambda: bool(house.nodes["a"].cancelled))
        # The node is told at once; the run is written down as cancelled before its place counts as free.
        await until(lambda: not house.services.dispatcher.held)
        house.nodes["a"].faults.seconds = 0.01
        third = await ask(client, stream=stream)
        fourth = await ask(client)

    assert (second.status_code, second.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert second.headers["retry-after"] == "2"
    assert (third.status_code, fourth.status_code) == (200, 200)


async def test_what_failed_costs_nothing(make_house: MakeHouse):
    house = await make_house("a")
    async with await limited(house, images_per_day=1) as client:
        wrong = await ask(client, size="16384x16384")
        right = await ask(client)

    assert (wrong.status_code, right.status_code) == (400, 200)


async def test_a_hundred_requests_at_two_routers_get_exactly_what_is_left(make_house: MakeHouse, another_router: MakeRouter):
    house = await make_house("a", "b", max_queued=200)
    other, _ = await another_router(max_queued=200)
    for node in house.nodes.values():
        node.faults.seconds = 0.0
    async with await limited(house, images_per_day=10) as client:
        there = httpx.AsyncClient(base_url=other.base_url, headers=client.headers, timeout=60)
        replies = await asyncio.gather(*(ask(each, size="16x16") for _ in range(50) for each in (client, there)))
        await there.aclose()

    statuses = [reply.status_code for reply in replies]
    assert (statuses.count(200), statuses.count(429)) == (10, 90)
    assert [row.images for row in await used(house)] == [10]


async def test_async_runs_that_have_not_ended_count(make_house: MakeHouse):
    house = await make_house("a")
    house.nodes["a"].faults.seconds = 60
    async with await limited(house, images_per_day=3, max_in_flight=5) as client:
        promised = await ask(client, n=2, headers={"prefer": "respond-async"})
        refused = await ask(client, n=2, headers={"prefer": "respond-async"})
        await client.delete(promised.headers["location"])
        again = await ask(client, n=2, headers={"prefer": "respond-async"})

    assert (promised.status_code, refused.status_code, again.status_code) == (202, 429, 202)


async def test_limits_are_changed_while_the_router_runs_and_usage_is_reported(make_house: MakeHouse):
    house = await make_house("a")
    async with await limited(house, images_per_day=1) as client:
        first, second = await ask(client), await ask(client)
        changed = await house.client.put("/admin/keys/limited/limits", json={"images_per_day": 5})
        async with asyncio.timeout(10):
            while (third := await ask(client)).status_code == 429:
                await asyncio.sleep(0.1)
        own = await client.get("/admin/usage")
    report = (await house.client.get("/admin/usage?days=2")).json()["data"]

    assert [first.status_code, second.status_code, third.status_code] == [200, 429, 200]
    assert changed.json()["limits"]["images_per_day"] == 5
    assert [(row["key"], row["runs"], row["images"]) for row in report] == [("limited", 2, 2)]
    assert own.status_code == 403


@pytest.mark.parametrize("limits", [{"requests_per_minute": 0}, {"images_per_day": -1}, {"pictures": 3}])
async def test_limits_that_are_none_are_refused(make_house: MakeHouse, limits: dict[str, int]):
    house = await make_house()

    reply = await house.client.post("/admin/keys", json={"name": "x", "limits": limits})

    assert reply.status_code == 400


async def test_leases_never_add_up_to_more_than_the_limit_and_end_by_themselves(catalog: Catalog):
    key, _ = await catalog.keys.create(name="k", scopes=["user"], limits=Limits(images_per_day=10, requests_per_minute=4))

    async def lease(holder: str, images: int, requests: int, *, at: datetime = NOON) -> Amounts:
        want = Amounts(images=images, requests=requests)
        return (await catalog.quotas.exchange(key.id, holder, key.limits, want, lease_s=30, now=at)).granted

    first, second = await lease("one", 8, 3), await lease("two", 8, 3)
    again = await lease("one", 1, 3)
    third = await lease("two", 9, 3)
    next_minute = await lease("three", 0, 4, at=NOON + timedelta(minutes=1))
    after_its_end = await lease("three", 10, 0, at=NOON + timedelta(seconds=31))

    assert [(each.images, each.requests) for each in (first, second)] == [(8, 3), (2, 1)]
    assert (again.images, third.images, third.requests) == (1, 9, 1)
    assert (next_minute.requests, after_its_end.images) == (4, 10)


async def test_a_lease_saves_the_catalog_most_of_the_asking(catalog: Catalog):
    limits = Limits(requests_per_minute=1000, images_per_day=1000)
    key, _ = await catalog.keys.create(name="k", scopes=["user"], limits=limits)
    asked = 0
    exchange = catalog.quotas.exchange

    async def counted(*given: Any, **named: Any) -> Any:
        nonlocal asked
        asked += 1
        return await exchange(*given, **named)

    catalog.quotas.exchange = counted  # type: ignore[method-assign]
    router = quotas.Quotas(catalog)

    for _ in range(200):
        (await router.admit(key, images=1, gpu_s=0)).release()

    # Fifty ahead each time; one more where a new minute began meanwhile.
    assert asked <= 6
