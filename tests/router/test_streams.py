"""A streamed run has its place at its node until its stream has ended, not until it begins."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.fakes.node import MODEL, Faults
from tests.router.conftest import House, MakeHouse, until

ASKED = {"prompt": "x", "model": MODEL, "stream": True, "partial_images": 1}


@asynccontextmanager
async def begun(house: House) -> AsyncIterator[AsyncIterator[str]]:
    """A streamed run after its preview, while its node works on: what is still to come, in lines."""
    house.nodes["a"].faults = Faults("wait_in_stream", times=1)
    async with house.client.stream("POST", "/v1/images/generations", json=ASKED) as reply:
        lines = reply.aiter_lines()
        async for line in lines:
            if line.startswith("data:"):
                break
        yield lines


async def test_its_place_is_taken_while_it_goes_on_and_free_when_it_has_ended(make_house: MakeHouse):
    house = await make_house("a", node_depth=0)
    async with begun(house) as lines:
        node = house.services.registry.get("a")
        assert len(node.ours) == 1

        house.nodes["a"].go_on.set()
        rest = [json.loads(line.removeprefix("data:")) async for line in lines if line.startswith("data:")]

    assert rest[-1]["type"] == "image_generation.completed"
    await until(lambda: node.ours == {})


async def test_its_place_is_free_when_its_client_leaves(make_house: MakeHouse):
    house = await make_house("a", node_depth=0)
    node = house.services.registry.get("a")
    async with begun(house):
        assert len(node.ours) == 1

    await until(lambda: node.ours == {})
