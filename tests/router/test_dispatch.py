"""What happens to a request when nodes misbehave: nothing is lost, nothing is made twice for nothing."""

import asyncio
from collections import Counter

import pytest

from common.catalog import AttemptStatus, RunStatus
from common.node_api import NodePhase
from router.placement import Health
from tests.fakes.node import Faults
from tests.router.conftest import MakeHouse, until


async def test_requests_are_shared_among_nodes(make_house: MakeHouse):
    house = await make_house("a", "b", "c")

    replies = await asyncio.gather(*(house.generate() for _ in range(30)))

    assert [reply.status_code for reply in replies] == [200] * 30
    shares = Counter({name: len(node.started) for name, node in house.nodes.items()})
    assert min(shares.values()) >= 5


@pytest.mark.parametrize(
    ("mode", "code"), [("error_500", "engine_failed"), ("error_503", "unavailable"), ("garbage_500", "node_failed")]
)
async def test_a_node_that_fails_is_left_for_another(make_house: MakeHouse, mode: str, code: str):
    house = await make_house("a", "b")
    house.nodes["a"].faults = Faults(mode, times=1)
    house.nodes["b"].faults = Faults(seconds=0.01)

    replies = await asyncio.gather(*(house.generate() for _ in range(4)))

    assert [reply.status_code for reply in replies] == [200] * 4
    runs = [await house.catalog.runs.get(reply.json()["id"]) for reply in replies]
    retried = [run for run in runs if len(run.attempts) == 2]
    assert len(retried) == 1
    assert [(a.node, a.status, a.error_code) for a in retried[0].attempts] == [
        ("a", AttemptStatus.FAILED, code),
        ("b", AttemptStatus.SUCCEEDED, None),
    ]


async def test_with_no_other_node_the_client_learns_what_the_failed_one_said(make_house: MakeHouse):
    house = await make_house("a")
    house.nodes["a"].faults = Faults("error_500", times=1)

    reply = await house.generate()

    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "engine_failed")
    assert reply.headers["x-should-retry"] == "false"
    assert (await house.catalog.runs.list(limit=1))[0].status is RunStatus.FAILED


async def test_a_picture_too_large_for_one_nodes_memory_is_made_by_another_and_not_sent_there_again(make_house: MakeHouse):
    house = await make_house("a", "b")
    house.nodes["a"].fits_px = 64 * 64

    replies = [await house.generate(size="128x128") for _ in range(4)]

    assert [reply.status_code for reply in replies] == [200] * 4
    first = await house.catalog.runs.get(replies[0].json()["id"])
    assert [(each.node, each.error_code) for each in first.attempts] == [("a", "out_of_memory"), ("b", None)]
    await until(lambda: bool(house.services.registry.get("a").status.models[0].memory_limits))  # type: ignore[union-attr]
    house.nodes["a"].started.clear()
    assert (await house.generate(size="128x128")).status_code == 200
    assert house.nodes["a"].started == []
    house.nodes["b"].phase = NodePhase.DRAINING
    assert (await house.generate(size="64x64")).status_code == 200


async def test_a_picture_too_large_for_every_node_is_told_so_with_what_would_fit(make_house: MakeHouse):
    house = await make_house("a", "b")
    for node in house.nodes.values():
        node.fits_px = 64 * 64

    at_nodes = await house.generate(size="128x128")
    await until(lambda: all(each.status and each.status.models[0].memory_limits for each in house.services.registry.nodes()))
    for node in house.nodes.values():
        node.started.clear()
    at_router = await house.generate(size="128x128")

    for reply in (at_nodes, at_router):
        assert (reply.status_code, reply.headers["x-should-retry"]) == (503, "false")
        assert (reply.json()["error"]["code"], reply.json()["error"]["param"]) == ("out_of_memory", "size")
    assert "4096 pixels fit" in at_nodes.json()["error"]["message"]
    assert "4,096 pixels would fit" in at_router.json()["error"]["message"]
    assert not any(node.started for node in house.nodes.values())
    assert [(await house.generate(size="64x64")).status_code for _ in range(3)] == [200] * 3


async def test_while_a_node_that_may_have_the_memory_is_away_a_retry_makes_sense(make_house: MakeHouse):
    house = await make_house("a", "b")
    house.nodes["a"].fits_px = 64 * 64
    house.nodes["b"].phase = NodePhase.DRAINING
    await until(lambda: (s := house.services.registry.get("b").status) is not None and s.phase is NodePhase.DRAINING)

    reply = await house.generate(size="128x128")

    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "out_of_memory")
    assert reply.headers["x-should-retry"] == "true"


async def test_a_node_that_is_busy_is_asked_again_not_given_up(make_house: MakeHouse):
    house = await make_house("a")
    house.nodes["a"].faults = Faults("busy", times=2)

    reply = await house.generate()

    assert reply.status_code == 200
    assert len(house.nodes["a"].started) == 3


async def test_a_wrong_request_that_only_the_node_can_see_is_not_tried_elsewhere(make_house: MakeHouse):
    house = await make_house("a", "b")

    reply = await house.generate(size="16384x16384")

    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "size")
    assert (await house.catalog.runs.list(limit=1))[0].status is RunStatus.FAILED
    assert len(house.nodes["a"].started) + len(house.nodes["b"].started) == 1


async def test_a_full_queue_is_answered_429_with_a_time_to_come_back(make_house: MakeHouse):
    house = await make_house("a", max_queued=2, node_depth=0)
    house.nodes["a"].faults.seconds = 60
    requests = [asyncio.create_task(house.generate()) for _ in range(3)]
    await until(lambda: len(house.services.queue) == 2)

    reply = await house.generate()

    assert (reply.status_code, reply.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(reply.headers["retry-after"]) <= 60
    for request in requests:
        request.cancel()


async def test_a_draining_node_ends_what_it_has_and_gets_no_more(make_house: MakeHouse):
    house = await make_house("a", "b")
    house.nodes["a"].faults.seconds = house.nodes["b"].faults.seconds = 0.3
    first = [asyncio.create_task(house.generate()) for _ in range(2)]
    await until(lambda: bool(house.nodes["a"].jobs) and bool(house.nodes["b"].jobs))

    await house.client.post("/admin/nodes/a/drain")
    later = await asyncio.gather(*(house.generate() for _ in range(3)))

    assert all(reply.status_code == 200 for reply in [*await asyncio.gather(*first), *later])
    assert len(house.nodes["a"].started) == 1
    await house.client.post("/admin/nodes/a/resume")
    await asyncio.gather(*(house.generate() for _ in range(4)))
    assert len(house.nodes["a"].started) > 1


async def test_a_node_that_says_it_drains_gets_no_more(make_house: MakeHouse):
    house = await make_house("a", "b")
    house.nodes["a"].phase = NodePhase.DRAINING
    await until(lambda: (s := house.services.registry.get("a").status) is not None and s.phase is NodePhase.DRAINING)

    await asyncio.gather(*(house.generate() for _ in range(4)))

    assert not house.nodes["a"].started


async def test_a_node_that_stops_answering_goes_from_error_to_offline_and_back(make_house: MakeHouse):
    house = await make_house("a")
    node = house.services.registry.get("a")
    house.nodes["a"].faults.mode = "status_500"

    await until(lambda: node.health is Health.OFFLINE)
    reply = await house.generate()
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "no_capacity")
    assert (await house.client.get("/ready")).status_code == 503
    house.nodes["a"].faults.mode = "none"

    await until(lambda: node.health is Health.ONLINE)
    assert (await house.generate()).status_code == 200
    assert (await house.client.get("/ready")).status_code == 200


async def test_a_run_waits_for_a_node_that_comes_back_soon(make_house: MakeHouse):
    house = await make_house("a", no_capacity_wait_s=20)
    house.nodes["a"].faults.mode = "status_500"
    await until(lambda: house.services.registry.get("a").health is Health.OFFLINE)
    request = asyncio.create_task(house.generate())
    await until(lambda: len(house.services.queue) == 1)

    house.nodes["a"].faults.mode = "none"

    assert (await request).status_code == 200


async def test_a_run_that_takes_longer_than_it_may_is_ended_and_its_node_told(make_house: MakeHouse):
    house = await make_house("a", run_timeout_s=0.5)
    house.nodes["a"].faults.seconds = 60

    reply = await house.generate()

    assert (reply.status_code, reply.json()["error"]["code"]) == (504, "deadline_exceeded")
    assert reply.headers["x-should-retry"] == "false"
    await until(lambda: len(house.nodes["a"].cancelled) == 1)


async def test_a_model_that_fails_on_one_node_again_and_again_is_kept_from_it(make_house: MakeHouse):
    house = await make_house("a", "b")
    house.nodes["a"].faults = Faults("error_500", times=100, seconds=0.01)

    replies = [await house.generate() for _ in range(8)]

    assert [reply.status_code for reply in replies] == [200] * 8
    assert len(house.nodes["a"].started) <= 4


async def test_nodes_are_registered_tested_and_removed_over_the_admin_api(make_house: MakeHouse):
    house = await make_house("a")
    new = {"name": "ghost", "url": "http://127.0.0.1:9", "token": "secret-token"}

    added = await house.client.post("/admin/nodes", json=new)
    again = await house.client.post("/admin/nodes", json=new)
    tested = await house.client.post("/admin/nodes/ghost/test")
    removed = await house.client.delete("/admin/nodes/ghost")

    assert (added.status_code, added.json()["state"]) == (201, "error")
    assert again.status_code == 409
    assert not tested.json()["reachable"]
    assert removed.status_code == 204
    assert [n["name"] for n in (await house.client.get("/admin/nodes")).json()["data"]] == ["a"]
    assert "secret-token" not in added.text + tested.text
    assert (await house.client.get("/admin/nodes/ghost")).status_code == 404


@pytest.mark.parametrize(
    ("url", "taken"),
    [
        ("http://127.0.0.1:9", True),
        ("https://gpu-2.example:8001/node/", True),
        ("http://[::1]:9", True),
        ("", False),
        ("ftp://host", False),
        ("file:///etc/passwd", False),
        ("http://", False),
        ("http://user:word@host", False),
        ("http://host/?a=b", False),
        ("http://host/#a", False),
        ("http://host\n", False),
        ("http://169.254.169.254/", False),
        ("http://[fe80::1]/", False),
    ],
)
async def test_a_node_has_an_address_and_nothing_beside_it(make_house: MakeHouse, url: str, taken: bool):
    house = await make_house()

    reply = await house.client.post("/admin/nodes", json={"name": "x", "url": url})

    assert reply.status_code == (201 if taken else 400), reply.text
    assert taken or reply.json()["error"]["param"] == "url"


@pytest.mark.parametrize("token", ["", "tökén", "a b", "a\nb", "\x00", "a" * 513])
async def test_a_token_that_no_header_can_hold_is_refused(make_house: MakeHouse, token: str):
    house = await make_house()

    reply = await house.client.post("/admin/nodes", json={"name": "x", "url": "http://127.0.0.1:9", "token": token})

    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "token")


async def test_a_key_works_from_its_making_to_its_revocation(make_house: MakeHouse):
    house = await make_house("a")
    made = (await house.client.post("/admin/keys", json={"name": "app", "expires_in_days": 1})).json()
    headers = {"authorization": f"Bearer {made['key']}"}

    assert (await house.client.get("/v1/models", headers=headers)).status_code == 200
    listed = (await house.client.get("/admin/keys")).json()["data"]
    assert made["key"] not in str(listed)
    assert next(k for k in listed if k["name"] == "app")["expires"] == pytest.approx(made["created"] + 86400, abs=2)
    await house.client.delete("/admin/keys/app")
    assert (await house.client.get("/v1/models", headers=headers)).status_code == 401


async def test_a_run_that_is_waited_for_is_not_swept_however_short_an_operator_makes_that_time(make_house: MakeHouse):
    house = await make_house("a", orphan_after_s=1.2, sweep_interval_s=0.1)
    house.nodes["a"].faults.seconds = 3

    reply = await house.generate()

    assert reply.status_code == 200


async def test_a_full_store_is_told_at_once_and_costs_no_second_generation(make_house: MakeHouse):
    house = await make_house("a", "b")
    for node in house.nodes.values():
        node.faults = Faults("storage_full", times=1)

    reply = await house.generate()

    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "storage_full")
    assert reply.headers["retry-after"] == "30"
    assert sum(len(node.started) for node in house.nodes.values()) == 1
    assert (await house.catalog.runs.list(limit=1))[0].error_code == "storage_full"
