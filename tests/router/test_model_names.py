"""Names of models before and after a router has heard of its nodes."""

import pytest

from common.errors import UnknownModel
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
