"""`dry_run`: what a request would cost and when it would be done, without doing any of it."""

import asyncio

import httpx
import pytest

from router.placement import Health
from tests.fakes.node import MODEL
from tests.router.conftest import USER_KEY, House, MakeHouse, until


async def untouched(house: House) -> bool:
    sent = any(node.started for node in house.nodes.values())
    return not sent and await house.catalog.runs.list() == []


async def test_a_dry_run_tells_node_time_and_cost_and_does_nothing(make_house: MakeHouse):
    house = await make_house("a")

    reply = await house.generate(dry_run=True, size="1000x1000", steps=3, n=2)

    told = reply.json()
    assert (reply.status_code, told["object"], told["fits"], told["node"]) == (200, "estimate", True, "a")
    # The stand-in says that a megapixel-step takes it one second, and that its model is loaded.
    assert (told["gpu_seconds"], told["eta_s"], told["load_s"], told["queued"]) == (6.0, 6.0, 0.0, 0)
    assert await untouched(house)


async def test_what_runs_and_what_waits_counts_into_the_time(make_house: MakeHouse):
    house = await make_house("a", node_depth=0)
    house.nodes["a"].faults.seconds = 60
    requests = [asyncio.create_task(house.generate(size="1000x1000", steps=2)) for _ in range(2)]
    await until(lambda: bool(house.nodes["a"].jobs) and len(house.services.queue) == 1)

    told = (await house.generate(dry_run=True, size="1000x1000", steps=3)).json()

    assert (told["gpu_seconds"], told["queued"]) == (3.0, 1)
    # Two seconds wait and three are its own; of what runs, the node itself says how much is left.
    assert told["eta_s"] >= 5.0
    for request in requests:
        request.cancel()


async def test_a_request_that_no_node_can_take_does_not_fit_and_operators_learn_why(make_house: MakeHouse):
    house = await make_house("a")
    house.nodes["a"].faults.mode = "status_500"
    await until(lambda: house.services.registry.get("a").health is Health.OFFLINE)

    told = (await house.generate(dry_run=True)).json()

    assert (told["fits"], told["eta_s"], told["gpu_seconds"], told["node"]) == (False, None, None, None)
    assert told["turned_away"] == {"a": "offline"}


async def test_nodes_are_named_to_operators_only(make_house: MakeHouse):
    house = await make_house("a")

    async with httpx.AsyncClient(base_url=house.url, headers={"authorization": f"Bearer {USER_KEY}"}) as user:
        told = await user.post("/v1/images/generations", json={"prompt": "x", "model": MODEL, "dry_run": True})

    assert told.json()["fits"] is True
    assert {"node", "turned_away"}.isdisjoint(told.json())


@pytest.mark.parametrize("fields", [{"n": 0}, {"model": "nobody/has-it"}, {"dry_run": "yes"}])
async def test_a_wrong_request_is_as_wrong_in_a_dry_run(make_house: MakeHouse, fields: dict[str, object]):
    house = await make_house("a")

    reply = await house.generate(**{"dry_run": True} | fields)

    assert reply.status_code == 400


async def test_a_dry_run_takes_no_idempotency_key_and_waits_for_nothing(make_house: MakeHouse):
    house = await make_house("a")
    headers = {"idempotency-key": "one", "prefer": "respond-async"}
    asked = {"prompt": "x", "model": MODEL}

    dry = await house.client.post("/v1/images/generations", json=asked | {"dry_run": True}, headers=headers)
    real = await house.client.post("/v1/images/generations", json=asked, headers={"idempotency-key": "one"})

    assert (dry.status_code, dry.json()["object"]) == (200, "estimate")
    assert (real.status_code, "idempotent-replayed" in real.headers) == (200, False)
