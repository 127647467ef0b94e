"""Nodes that make themselves known: what a key for that opens, and what waits for an operator."""

from typing import Any

import httpx
import pytest

from tests.fakes.node import MODEL, FakeNode, build_fake
from tests.router.conftest import USER_KEY, House, MakeHouse, until
from tests.serving import served


async def joiner(house: House, *scopes: str) -> dict[str, str]:
    made = await house.client.post("/admin/keys", json={"name": "fleet", "scopes": scopes})
    return {"authorization": f"Bearer {made.json()['key']}"}


async def join(house: House, headers: dict[str, str], **told: Any) -> httpx.Response:
    body = {"name": "b", "url": "http://127.0.0.1:9", "token": "token"} | told
    return await house.client.post("/fleet/join", json=body, headers=headers)


@pytest.fixture
def fake(make_house: MakeHouse) -> Any:
    """Makes a node of a house that nobody has registered."""

    def make(house: House) -> FakeNode:
        known = house.nodes["a"]
        return FakeNode("b", house.catalog, known.assets, [MODEL, "another"], known.links)

    return make


async def test_a_node_that_joins_has_runs_when_an_operator_says_so(make_house: MakeHouse, fake: Any):
    house = await make_house("a")
    node = fake(house)
    async with served(build_fake(node)) as url:
        joined = await join(house, await joiner(house, "join"), url=url)

        assert (joined.status_code, joined.json()["approved"]) == (200, False)
        listed = {each["name"]: each for each in (await house.client.get("/admin/nodes")).json()["data"]}
        assert (listed["b"]["approved"], listed["b"]["state"], listed["a"]["approved"]) == (False, "pending", True)
        assert (await house.generate(model="another")).status_code == 400
        assert [each.name for each in house.services.registry.nodes()] == ["a"]

        approved = await house.client.post("/admin/nodes/b/approve")

        assert (approved.json()["approved"], approved.json()["state"]) == (True, "online")
        assert (await house.generate(model="another")).status_code == 200


async def test_a_key_may_spare_its_nodes_the_approval(make_house: MakeHouse, fake: Any):
    house = await make_house("a")
    async with served(build_fake(fake(house))) as url:
        joined = await join(house, await joiner(house, "join-approved"), url=url)

        assert joined.json() == {"object": "node", "name": "b", "url": url, "approved": True}
        await until(lambda: {str(each.health) for each in house.services.registry.nodes()} == {"online"})
        assert (await house.generate(model="another")).status_code == 200


async def test_a_node_that_joins_again_moves_and_keeps_what_an_operator_said(make_house: MakeHouse):
    house = await make_house("a")
    headers = await joiner(house, "join")
    await join(house, headers)
    await house.client.post("/admin/nodes/b/approve")

    again = await join(house, headers, url="http://127.0.0.1:10")

    assert again.json() == {"object": "node", "name": "b", "url": "http://127.0.0.1:10", "approved": True}
    assert house.services.registry.get("b").record.url == "http://127.0.0.1:10"


async def test_nobody_takes_the_place_of_a_node_without_its_token(make_house: MakeHouse):
    house = await make_house("a")
    before = await house.catalog.nodes.get("a")

    refused = await join(house, await joiner(house, "join-approved"), name="a", token="not-its-token")

    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "node_known")
    after = await house.catalog.nodes.get("a")
    assert (after.url, after.token) == (before.url, before.token)


async def test_a_key_to_join_opens_nothing_else(make_house: MakeHouse):
    house = await make_house("a")
    headers = await joiner(house, "join-approved")

    for method, path in [("POST", "/v1/images/generations"), ("GET", "/admin/nodes"), ("GET", "/v1/models")]:
        reply = await house.client.request(method, path, json={"prompt": "p"}, headers=headers)
        assert reply.status_code == 403, path
    assert (await join(house, {"authorization": f"Bearer {USER_KEY}"})).status_code == 403


async def test_a_node_that_nobody_approves_can_be_removed(make_house: MakeHouse):
    house = await make_house("a")
    await join(house, await joiner(house, "join"))

    assert (await house.client.delete("/admin/nodes/b")).status_code == 204
    assert [each["name"] for each in (await house.client.get("/admin/nodes")).json()["data"]] == ["a"]
    assert (await house.client.post("/admin/nodes/b/approve")).status_code == 404


@pytest.mark.parametrize("told", [{"url": "ftp://b"}, {"url": "http://169.254.169.254"}, {"name": "../b"}, {"token": ""}])
async def test_what_a_node_tells_of_itself_is_looked_at(make_house: MakeHouse, told: dict[str, str]):
    house = await make_house("a")

    assert (await join(house, await joiner(house, "join"), **told)).status_code == 400


async def test_a_token_is_not_exchanged_where_the_node_cannot_be_told(make_house: MakeHouse):
    house = await make_house("a")
    await house.client.patch("/admin/nodes/a", json={"url": "http://127.0.0.1:9"})

    reply = await house.client.post("/admin/nodes/a/rotate")

    assert (reply.status_code, reply.json()["error"]["code"]) == (409, "node_not_told")
    assert (await house.catalog.nodes.get("a")).token == "token"


async def test_a_new_token_is_told_to_the_node_and_shown_to_nobody(make_house: MakeHouse):
    house = await make_house("a")

    reply = await house.client.post("/admin/nodes/a/rotate")

    told = house.nodes["a"].token
    assert (reply.status_code, reply.json()["state"]) == (200, "online")
    assert told is not None
    assert told not in reply.text
    assert (await house.catalog.nodes.get("a")).token == told != "token"
