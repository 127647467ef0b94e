"""A node that moved is told of by its new address or token, and keeps its name and its place."""

from tests.router.conftest import MakeHouse


async def test_a_node_is_found_at_its_new_address_under_its_new_token(make_house: MakeHouse):
    house = await make_house("a")
    old = (await house.client.get("/admin/nodes/a")).json()

    gone = await house.client.patch("/admin/nodes/a", json={"url": "http://127.0.0.1:9"})
    back = await house.client.patch("/admin/nodes/a", json={"url": old["url"] + "/", "token": "another-token"})

    assert gone.json()["id"] == old["id"]
    assert gone.json()["state"] in ("error", "offline")
    assert (back.json()["id"], back.json()["url"]) == (old["id"], old["url"])
    assert "another-token" not in back.text
    assert (await house.catalog.nodes.get("a")).token == "another-token"


async def test_what_is_not_told_of_a_moved_node_stays(make_house: MakeHouse):
    house = await make_house("a")

    reply = await house.client.patch("/admin/nodes/a", json={"url": None, "token": None})

    assert (reply.status_code, reply.json()["state"]) == (200, "online")
    assert (await house.catalog.nodes.get("a")).token == "token"


async def test_a_moved_node_needs_a_good_address_and_must_be_known(make_house: MakeHouse):
    house = await make_house("a")

    assert (await house.client.patch("/admin/nodes/a", json={"url": "ftp://a"})).status_code == 400
    assert (await house.client.patch("/admin/nodes/b", json={})).status_code == 404
