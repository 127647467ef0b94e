"""Several routers before the same nodes: who comes too late is told so at once, and loses nothing but that moment."""

import asyncio
import base64

import httpx

from common.catalog import AttemptStatus
from common.images_api import OutputFormat, Size
from common.node_api import NodePhase
from common.pictures import encode
from router.placement import Health
from tests.fakes.node import MODEL, FakeNode, pixels_for
from tests.router.conftest import House, MakeHouse, MakeRouter, until

PLACES = 2


def asked(client: httpx.AsyncClient, prompt: str) -> "asyncio.Task[httpx.Response]":
    return asyncio.create_task(client.post("/v1/images/generations", json={"prompt": prompt, "model": MODEL}))


def overtakers(order: list[int]) -> dict[int, int]:
    """How many of those that came later were begun before, by number."""
    return {number: sum(later > number for later in order[:index]) for index, number in enumerate(order)}


async def attempts(house: House) -> list[str | None]:
    runs = await house.catalog.runs.list(limit=200)
    return [each.error_code for run in runs for each in run.attempts]


def begun(nodes: dict[str, FakeNode], router: str) -> list[int]:
    """The numbers of a router's runs, node by node in the order in which they were begun, merged by turns."""
    return [int(each.prompt.split()[1]) for node in nodes.values() for each in node.asked if each.prompt.startswith(router)]


async def test_two_routers_never_put_more_on_a_node_than_it_has_places_for_and_lose_nothing(
    make_house: MakeHouse, another_router: MakeRouter
):
    house = await make_house("a", "b")
    other, _ = await another_router()
    for node in house.nodes.values():
        node.faults.seconds = 0.05

    runs = [asked(client, f"{name} {i}") for i in range(20) for name, client in (("one", house.client), ("two", other))]
    replies = await asyncio.gather(*runs)

    assert [reply.status_code for reply in replies] == [200] * 40
    assert [node.most_at_once for node in house.nodes.values()] == [PLACES] * 2
    codes = await attempts(house)
    assert set(codes) == {None, "busy"}
    assert codes.count(None) == 40
    assert sum(len(node.started) for node in house.nodes.values()) == 40


async def test_the_order_of_a_keys_runs_is_kept_but_for_those_already_on_their_way(
    make_house: MakeHouse, another_router: MakeRouter
):
    house = await make_house("a")
    other, services = await another_router()
    house.nodes["a"].faults.seconds = 0.1
    runs: dict[str, list[asyncio.Task[httpx.Response]]] = {"one": [], "two": []}
    held = {"one": house.services.dispatcher.held, "two": services.dispatcher.held}
    for i in range(15):
        for name, client in (("one", house.client), ("two", other)):
            runs[name].append(asked(client, f"{name} {i}"))
        await until(lambda: all(len(held[name]) + sum(run.done() for run in runs[name]) > i for name in runs))  # noqa: B023
    await asyncio.gather(*runs["one"], *runs["two"])

    for router in ("one", "two"):
        order = begun(house.nodes, router)
        assert sorted(order) == list(range(15))
        # Each time that it was sent, those may have been on their way that its router sent with it.
        tries = {run.prompt: len(run.attempts) for run in await house.catalog.runs.list(limit=200)}
        assert all(count <= (PLACES - 1) * tries[f"{router} {number}"] for number, count in overtakers(order).items())


async def test_a_node_without_a_place_is_not_held_to_have_failed(make_house: MakeHouse, another_router: MakeRouter):
    house = await make_house("a", max_attempts=1, probe_interval_s=3600)
    other, services = await another_router(max_attempts=1, probe_interval_s=3600)
    house.nodes["a"].faults.seconds = 0.1

    replies = await asyncio.gather(*(asked(client, f"x {i}") for i in range(6) for client in (house.client, other)))

    assert [reply.status_code for reply in replies] == [200] * 12
    for registry in (house.services.registry, services.registry):
        node = registry.get("a")
        assert (node.health, node.failures, node.circuits) == (Health.ONLINE, 0, {})


async def test_a_request_with_a_picture_is_sent_again_whole(make_house: MakeHouse, another_router: MakeRouter):
    house = await make_house("a")
    other, _ = await another_router()
    house.nodes["a"].faults.seconds = 0.2
    picture = encode(pixels_for("in", 1, Size(64, 64)), output_format=OutputFormat.PNG)
    busy = [asked(other, f"x {i}") for i in range(2)]
    await until(lambda: len(house.nodes["a"].jobs) == PLACES)
    # As if nothing had been heard of those yet.
    node = house.services.registry.get("a")
    assert node.status is not None
    node.status = node.status.model_copy(update={"jobs": []})
    house.services.registry.ended(node, "nobody")

    reply = await house.client.post(
        "/v1/images/edits", data={"prompt": "p", "model": MODEL}, files={"image": ("a.png", picture, "image/png")}
    )

    assert reply.status_code == 200
    assert base64.b64decode(reply.json()["data"][0]["b64_json"])
    assert house.nodes["a"].uploads == [picture]
    await asyncio.gather(*busy)


async def test_a_node_that_began_to_drain_unheard_turns_runs_away_at_no_cost(make_house: MakeHouse):
    house = await make_house("a", "b", probe_interval_s=3600, max_attempts=1)
    await until(lambda: all(node.listeners for node in house.nodes.values()))
    house.nodes["a"].phase = NodePhase.DRAINING

    assert (await house.generate()).status_code == 200

    assert not house.nodes["a"].started
    run = (await house.catalog.runs.list(limit=1))[0]
    assert [(each.node, each.status, each.error_code) for each in run.attempts] == [
        ("a", AttemptStatus.FAILED, "busy"),
        ("b", AttemptStatus.SUCCEEDED, None),
    ]
    assert not house.services.registry.get("a").circuits
