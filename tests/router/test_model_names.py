"""Names of models before and after a router has heard of its nodes."""

import asyncio

import pytest

from common.errors import UnknownModel
from router.costs import CostBook
from router.model_names import ModelNames
from router.registry import Registry
from tests.router.conftest import House, MakeHouse

NOWHERE = "http://127.0.0.1:9"


async def asked(house: House, model: str | None) -> tuple[int, str, str | None]:
    """Status, code and Retry-After."""
    body = {"prompt": "x"} | ({} if model is None else {"model": model})
    reply = await house.client.post("/v1/images/generations", json=body)
    return reply.status_code, reply.json()["error"]["code"], reply.headers.get("retry-after")


@pytest.mark.parametrize("model", [None, "dall-e-3"])
async def test_before_a_node_has_said_what_it_has_a_request_without_a_model_or_with_a_built_in_name_is_to_come_again(
    make_house: MakeHouse, model: str | None
):
    house = await make_house()
    await house.catalog.nodes.add(name="starts", url=NOWHERE, token="token")
    await house.services.registry.refresh()

    assert await asked(house, model) == (503, "no_capacity", "1")


@pytest.mark.parametrize("model", [None, "dall-e-3", "nobody/has-it"])
async def test_what_all_nodes_have_said_they_have_not_does_not_exist(make_house: MakeHouse, model: str | None):
    house = await make_house("a", models={"a": []})

    assert await asked(house, model) == (400, UnknownModel("").code, None)


async def begun(house: House) -> tuple[Registry, ModelNames]:
    """Of a router that has not asked its nodes anything yet."""
    registry = Registry(house.catalog, depth=1, costs=CostBook(await house.catalog.costs.all()))
    await registry.refresh()
    return registry, ModelNames(registry, house.catalog, default=None)


@pytest.mark.parametrize(("model", "meant"), [(None, "ape"), ("ape", "ape"), ("dall-e-3", "aquatint-demo")])
async def test_a_request_waits_until_a_router_that_just_began_has_asked_all_its_nodes(
    make_house: MakeHouse, model: str | None, meant: str
):
    house = await make_house("a", "b", models={"a": ["zebra"], "b": ["ape", "aquatint-demo"]})
    registry, names = await begun(house)
    asked, listed = asyncio.create_task(names.resolve(model)), asyncio.create_task(names.listed())
    a, b = registry.nodes()

    await registry.seen(a, house.nodes["a"].status())
    await registry.seen(b, house.nodes["b"].status())

    assert (await asked)[0] == meant
    assert {"ape", "zebra"} <= {each.id for each in await listed}


async def test_a_node_that_does_not_answer_is_waited_for_no_longer_than_it_takes_to_see_that(make_house: MakeHouse):
    house = await make_house("a", "b", models={"a": ["zebra"], "b": ["ape"]})
    registry, names = await begun(house)
    asked = asyncio.create_task(names.resolve(None))
    a, b = registry.nodes()

    await registry.seen(a, house.nodes["a"].status())
    await registry.failed(b, "unreachable", gone=True)

    assert (await asked)[0] == "zebra"
