"""One request over several nodes: one run, one answer and one bill, as if one node had made it."""

import asyncio
import base64
from typing import Any

import httpx
import openai

from common.catalog import AttemptStatus, Limits, RunStatus
from common.images_api import OutputFormat, Size
from common.node_api import NodeStatus
from common.pictures import encode
from tests.fakes.node import MODEL, Faults, pixels_for
from tests.router.conftest import ADMIN_KEY, House, MakeHouse, MakeRouter, until

FOUR: dict[str, Any] = {"n": 4, "size": "512x512", "seed": 7}
"""Predicted to take some 4 s on one stand-in, which takes 50 ms."""


def made_alone(prompt: str = "a cat", seeds: range = range(7, 11)) -> list[bytes]:
    """The pictures one node would have made."""
    size = Size(512, 512)
    return [encode(pixels_for(prompt, seed, size), output_format=OutputFormat.PNG) for seed in seeds]


def pictures_in(reply: httpx.Response) -> list[bytes]:
    return [base64.b64decode(each["b64_json"]) for each in reply.json()["data"]]


async def test_two_idle_nodes_share_a_request_and_the_answer_is_that_of_one(make_house: MakeHouse):
    house = await make_house("a", "b")

    reply = await house.generate(**FOUR)

    assert (reply.status_code, reply.headers["x-parts"]) == (200, "2+2")
    assert [len(node.started) for node in house.nodes.values()] == [1, 1]
    assert pictures_in(reply) == made_alone()
    told = reply.json()
    assert [each["seed"] for each in told["data"]] == [7, 8, 9, 10]
    assert reply.headers["x-image-seeds"] == "7,8,9,10"
    assert told["id"] == reply.headers["x-run-id"]
    assert int(reply.headers["content-length"]) == len(reply.content)
    house.services.splitter._allowed = False
    whole = (await house.generate(**FOUR)).json()
    assert told["usage"] == whole["usage"]
    assert told.keys() == whole.keys()


async def test_it_is_one_run_whose_parts_tell_who_made_what(make_house: MakeHouse):
    house = await make_house("a", "b")

    reply = await house.generate(**FOUR)
    run = await house.catalog.runs.get(reply.json()["id"])

    assert (run.status, run.n, run.attempts, run.parent_id) == (RunStatus.SUCCEEDED, 4, (), None)
    assert [image.id for image in run.images] == [each["asset_id"] for each in reply.json()["data"]]
    assert [(image.index, image.seed) for image in run.images] == [(0, 7), (1, 8), (2, 9), (3, 10)]
    assert [image.run_id for image in run.images] == [part.id for part in run.parts for _ in range(2)]
    assert sorted(str(part.node) for part in run.parts) == ["a", "b"]
    assert [(part.seed, part.n, part.status) for part in run.parts] == [(s, 2, RunStatus.SUCCEEDED) for s in (7, 9)]
    assert [each.id for each in await house.catalog.runs.list()] == [run.id]
    shown = (await house.client.get(f"/v1/runs/{run.id}")).json()
    assert [(part["n"], part["seed"]) for part in shown["parts"]] == [(2, 7), (2, 9)]
    assert {part["attempts"][0]["node"] for part in shown["parts"]} == {"a", "b"}
    assert len(shown["images"]) == 4
    assert (await house.client.get(shown["images"][3]["url"])).content == made_alone()[3]


async def test_the_key_pays_once(make_house: MakeHouse):
    house = await make_house("a", "b")
    key, secret = await house.catalog.keys.create(name="paying", scopes=["user"], limits=Limits(images_per_day=4))

    replies = [
        await house.client.post(
            "/v1/images/generations",
            json={"prompt": "a cat", "model": MODEL, **FOUR},
            headers={"authorization": f"Bearer {secret}"},
        )
        for _ in range(2)
    ]

    assert [reply.status_code for reply in replies] == [200, 429]
    assert replies[0].headers["x-parts"] == "2+2"
    (usage,) = [each for each in await house.catalog.quotas.usage(since="2026-01-01") if each.key_id == key.id]
    assert (usage.runs, usage.images, round(usage.gpu_s, 3)) == (1, 4, 0.1)


async def test_sent_again_under_its_key_it_gets_the_same_bytes(make_house: MakeHouse):
    house = await make_house("a", "b")
    for format_ in ("b64_json", "url"):
        ask = {"prompt": "a cat", "model": MODEL, "response_format": format_, **FOUR}
        headers = {"idempotency-key": f"order-{format_}"}

        first = await house.client.post("/v1/images/generations", json=ask, headers=headers)
        again = await house.client.post("/v1/images/generations", json=ask, headers=headers)

        assert (first.status_code, first.headers["x-parts"]) == (200, "2+2")
        assert (again.headers["idempotent-replayed"], again.content) == ("true", first.content)
    assert sum(len(node.started) for node in house.nodes.values()) == 4


async def test_a_part_that_fails_is_tried_on_another_node_and_the_others_are_left_alone(make_house: MakeHouse):
    house = await make_house("a", "b", "c")
    house.nodes["a"].faults = Faults("error_500", times=1)

    reply = await house.generate(n=2, size="512x512", seed=7)
    run = await house.catalog.runs.get(reply.json()["id"])

    assert (reply.status_code, reply.headers["x-parts"]) == (200, "1+1")
    assert pictures_in(reply) == made_alone(seeds=range(7, 9))
    tried = sorted([attempt.node for attempt in part.attempts] for part in run.parts)
    assert [len(nodes) for nodes in tried] == [2, 1]
    assert tried[0][0] == "a"


async def test_a_part_that_fails_for_good_fails_the_request_and_frees_the_others(make_house: MakeHouse):
    house = await make_house("a", "b", max_attempts=1)
    house.nodes["a"].faults = Faults("error_500", times=1)
    house.nodes["b"].faults.seconds = 60

    reply = await house.generate(**FOUR)
    (run,) = await house.catalog.runs.list()

    assert (reply.status_code, reply.json()["error"]["code"]) == (500, "engine_failed")
    assert (run.status, run.error_code, run.images) == (RunStatus.FAILED, "engine_failed", ())
    assert {part.status for part in run.parts} == {RunStatus.FAILED, RunStatus.CANCELLED}
    await until(lambda: not house.nodes["b"].jobs)
    assert not house.services.registry.get("b").ours
    assert not house.services.dispatcher.held
    assert await house.catalog.quotas.usage(since="2026-01-01") == []


async def test_what_is_wrong_with_the_request_is_told_as_by_one_node(make_house: MakeHouse):
    house = await make_house("a", "b")

    reply = await house.generate(n=2, size="16384x16384")
    (run,) = await house.catalog.runs.list()

    assert (reply.status_code, reply.json()["error"]["param"], reply.headers["x-run-id"]) == (400, "size", run.id)
    assert run.status is RunStatus.FAILED
    assert len(run.parts) == 2


async def _two_alike_and_another(make_house: MakeHouse, **settings: Any) -> House:
    """Nodes a and b, whose runs take a minute, and c, which makes other pictures of the model as far as the router knows."""
    house = await make_house("a", "b", "c", **settings)
    house.nodes["c"].version = "1"
    await until(lambda: _status(house, "c").version == "1")
    for name in "ab":
        house.nodes[name].faults.seconds = 60
    return house


def _status(house: House, name: str) -> NodeStatus:
    status = house.services.registry.get(name).status
    assert status is not None
    return status


def _vanish(house: House, *names: str) -> None:
    for name in names:
        house.nodes[name].faults.mode = "status_500"
        # Noticed now, of all at once: or the run of the first would be tried at the others, which are about to vanish.
        house.nodes[name].teller.changed()


async def test_where_all_alike_nodes_vanish_one_that_is_left_makes_the_whole(make_house: MakeHouse):
    house = await _two_alike_and_another(make_house, no_capacity_wait_s=60)
    request = asyncio.create_task(house.generate(**FOUR))
    await until(lambda: all(house.nodes[name].jobs for name in "ab"))

    _vanish(house, "a", "b")
    reply = await request
    run = await house.catalog.runs.get(reply.json()["id"])

    assert (reply.status_code, pictures_in(reply)) == (200, made_alone())
    assert "x-parts" not in reply.headers
    assert [(attempt.node, attempt.status) for attempt in run.attempts] == [("c", AttemptStatus.SUCCEEDED)]
    assert (run.status, len(run.images)) == (RunStatus.SUCCEEDED, 4)
    assert [part.status for part in run.parts] == [RunStatus.CANCELLED] * 2
    assert not house.services.dispatcher.held
    assert not len(house.services.queue)
    (usage,) = await house.catalog.quotas.usage(since="2026-01-01")
    assert (usage.runs, usage.images) == (1, 4)


async def test_nodes_that_are_removed_are_not_waited_for(make_house: MakeHouse):
    house = await _two_alike_and_another(make_house, no_capacity_wait_s=60)
    request = asyncio.create_task(house.generate(**FOUR))
    await until(lambda: all(house.nodes[name].jobs for name in "ab"))

    for name in "ab":
        (await house.client.delete(f"/admin/nodes/{name}")).raise_for_status()
    reply = await request

    assert (reply.status_code, pictures_in(reply)) == (200, made_alone())
    assert house.nodes["c"].started == [reply.headers["x-run-id"]]


async def test_what_is_made_already_is_kept_for_a_while_and_the_run_tells_what_it_waits_for(make_house: MakeHouse):
    house = await _two_alike_and_another(make_house, no_capacity_wait_s=1.0)
    house.nodes["a"].faults.seconds = 0.05
    request = asyncio.create_task(house.generate(**FOUR))
    await until(lambda: bool(house.nodes["a"].started) and not house.nodes["a"].jobs and bool(house.nodes["b"].jobs))
    (listed,) = (await house.client.get("/v1/runs")).json()["data"]

    _vanish(house, "a", "b")
    await until(lambda: len(house.services.queue) == 1)
    shown = (await house.client.get(f"/v1/runs/{listed['id']}")).json()
    reply = await request
    run = await house.catalog.runs.get(listed["id"])

    assert "c: may make it otherwise than the request's other parts are made" in shown["waits_because"]
    assert (shown["phase"], shown["position"]) == ("queued", 1)
    assert (reply.status_code, pictures_in(reply)) == (200, made_alone())
    assert [part.status for part in run.parts] == [RunStatus.SUCCEEDED, RunStatus.FAILED]
    assert ([attempt.node for attempt in run.attempts], len(run.images)) == (["c"], 4)
    (usage,) = await house.catalog.quotas.usage(since="2026-01-01")
    assert (usage.runs, usage.images) == (1, 4)


async def test_parts_that_nobody_else_could_make_wait_for_their_nodes_to_come_back(make_house: MakeHouse):
    house = await make_house("a", "b", "c", models={"c": ["another/model"]}, no_capacity_wait_s=60)
    for name in "ab":
        house.nodes[name].faults.seconds = 60
    request = asyncio.create_task(house.generate(**FOUR))
    await until(lambda: all(house.nodes[name].jobs for name in "ab"))

    _vanish(house, "a", "b")
    await until(lambda: len(house.services.queue) == 2)
    for name in "ab":
        house.nodes[name].faults = Faults()
    reply = await request

    assert (reply.status_code, reply.headers["x-parts"], pictures_in(reply)) == (200, "2+2", made_alone())


async def test_an_async_run_whose_nodes_vanish_is_made_by_another_at_once(make_house: MakeHouse):
    house = await _two_alike_and_another(make_house, no_capacity_wait_s=60)
    ask = {"prompt": "a cat", "model": MODEL, **FOUR}
    reply = await house.client.post("/v1/images/generations", json=ask, headers={"prefer": "respond-async"})
    await until(lambda: all(house.nodes[name].jobs for name in "ab"))

    _vanish(house, "a", "b")
    answer = await _answered(house, f"{reply.headers['location']}/answer")

    assert pictures_in(answer) == made_alone()
    assert house.nodes["c"].started == [answer.json()["id"]]


async def test_when_the_client_leaves_all_parts_are_cancelled(make_house: MakeHouse):
    house = await make_house("a", "b")
    for node in house.nodes.values():
        node.faults.seconds = 60
    request = asyncio.create_task(house.generate(**FOUR))
    await until(lambda: all(node.jobs for node in house.nodes.values()))
    (listed,) = (await house.client.get("/v1/runs")).json()["data"]

    request.cancel()

    await until(lambda: all(node.cancelled for node in house.nodes.values()))
    await until(lambda: not house.services.dispatcher.held)
    run = await house.catalog.runs.get(listed["id"])
    assert {run.status, *(part.status for part in run.parts)} == {RunStatus.CANCELLED}
    assert listed["phase"] == "running"


async def test_it_can_be_cancelled_at_another_router(make_house: MakeHouse, another_router: MakeRouter):
    house = await make_house("a", "b")
    other, _ = await another_router()
    for node in house.nodes.values():
        node.faults.seconds = 60
    request = asyncio.create_task(house.generate(**FOUR))
    await until(lambda: all(node.jobs for node in house.nodes.values()))
    (run,) = await house.catalog.runs.list()
    assert run.status is RunStatus.RUNNING

    reply = await other.delete(f"/v1/runs/{run.id}")

    assert (reply.status_code, reply.json()["status"]) == (200, "cancelled")
    assert (await request).status_code >= 400
    await until(lambda: all(node.cancelled for node in house.nodes.values()))
    assert (await house.catalog.runs.get(run.id)).status is RunStatus.CANCELLED


async def test_an_async_run_is_made_in_parts_too(make_house: MakeHouse):
    house = await make_house("a", "b")
    ask = {"prompt": "a cat", "model": MODEL, **FOUR}

    reply = await house.client.post("/v1/images/generations", json=ask, headers={"prefer": "respond-async"})
    url = f"{reply.headers['location']}/answer"
    answer = await _answered(house, url)

    assert reply.status_code == 202
    assert pictures_in(answer) == made_alone()
    assert [len(node.started) for node in house.nodes.values()] == [1, 1]


async def _answered(house: House, url: str) -> httpx.Response:
    async with asyncio.timeout(10):
        while (answer := await house.client.get(url)).status_code == 202:
            await asyncio.sleep(0.02)
    return answer


async def test_an_async_run_whose_parts_failed_is_made_as_one_later(make_house: MakeHouse, monkeypatch: Any):
    house = await make_house("a", "b", max_attempts=1)
    monkeypatch.setattr("router.async_runs.PUT_BACK_FOR_S", 0.1)
    house.nodes["a"].faults = Faults("error_503", times=1)
    ask = {"prompt": "a cat", "model": MODEL, **FOUR}

    reply = await house.client.post("/v1/images/generations", json=ask, headers={"prefer": "respond-async"})
    answer = await _answered(house, f"{reply.headers['location']}/answer")
    run = await house.catalog.runs.get(answer.json()["id"])

    assert pictures_in(answer) == made_alone()
    assert ([attempt.status for attempt in run.attempts], len(run.parts)) == ([AttemptStatus.SUCCEEDED], 2)
    assert len(run.images) == 4


async def test_explain_tells_the_plan_and_why_each_part_went_where(make_house: MakeHouse):
    house = await make_house("a", "b")

    reply = await house.client.post(
        "/v1/images/generations",
        json={"prompt": "a cat", "model": MODEL, **FOUR},
        headers={"x-aquatint-debug": "1"},
    )
    told = (await house.client.get(f"/v1/runs/{reply.json()['id']}/decisions")).json()["data"]

    plan, *decisions = told
    assert [part["pictures"] for part in plan["parts"]] == [2, 2]
    assert plan["predicted_s"] < plan["whole"]["predicted_s"]
    assert plan["took_s"] > 0
    assert [(each["part"], each["work"]["pictures"]) for each in decisions] == [
        (f"{reply.json()['id']}_{index}", 2) for index in range(2)
    ]
    assert {each["node"] for each in decisions} == {"a", "b"}
    assert '"decisions":[' in reply.headers["x-aquatint-decision"]


async def test_a_dry_run_tells_the_parts(make_house: MakeHouse):
    house = await make_house("a", "b")

    told = (await house.generate(**FOUR, dry_run=True)).json()
    alone = (await house.generate(**FOUR, dry_run=True, exact=True)).json()

    assert [(each["pictures"], each["node"]) for each in told["parts"]] == [(2, "a"), (2, "b")]
    assert told["eta_s"] < alone["eta_s"]
    assert told["gpu_seconds"] == alone["gpu_seconds"]
    assert "parts" not in alone


async def test_what_may_not_be_split_is_made_by_one_node(make_house: MakeHouse):
    house = await make_house("a", "b")

    exact = await house.generate(**FOUR, exact=True)
    small = await house.generate(n=4, size="64x64")
    house.services.splitter._allowed = False
    forbidden = await house.generate(**FOUR)

    for reply in (exact, small, forbidden):
        assert reply.status_code == 200
        assert "x-parts" not in reply.headers
    assert pictures_in(exact) == pictures_in(forbidden) == made_alone()


async def test_a_deadline_that_only_parts_can_meet_is_met(make_house: MakeHouse):
    house = await make_house("a", "b")
    headers = {"x-deadline-s": "3"}

    split = await house.client.post("/v1/images/generations", json={"prompt": "a cat", "model": MODEL, **FOUR}, headers=headers)
    whole = await house.client.post(
        "/v1/images/generations", json={"prompt": "a cat", "model": MODEL, "exact": True, **FOUR}, headers=headers
    )

    assert (split.status_code, split.headers["x-parts"]) == (200, "2+2")
    assert (whole.status_code, whole.json()["error"]["code"]) == (504, "deadline_too_soon")


async def test_the_sdk_reads_an_answer_made_in_parts(make_house: MakeHouse):
    house = await make_house("a", "b")

    async with openai.AsyncOpenAI(base_url=f"{house.url}/v1", api_key=ADMIN_KEY, max_retries=0) as client:
        answer = await client.images.generate(model=MODEL, prompt="a cat", n=4, size="512x512", extra_body={"seed": 7})

    assert [base64.b64decode(each.b64_json or "") for each in answer.data or []] == made_alone()
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
