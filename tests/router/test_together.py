"""What the fleet has of a model, out of what its nodes have."""

from typing import Any

from common.node_api import ModelStatus
from router.together import together
from tests.fakes.node import MODEL
from tests.router.conftest import House, MakeHouse, until


def told(*, resident: bool = False, tasks: tuple[str, ...] = ("generation",), **capabilities: Any) -> ModelStatus:
    return ModelStatus(
        id=MODEL, family="f", profile="p", tasks=list(tasks), created=0, resident=resident, capabilities=capabilities
    )


def lora(name: str, *words: str) -> dict[str, Any]:
    return {"name": name, "trigger_words": list(words)}


def test_what_lies_beside_a_model_on_any_node_is_told_once_and_by_name():
    one = told(loras=[lora("ink", "inky"), lora("detail")], controls=[{"name": "canny", "kind": "canny"}], upscalers=["latent"])
    other = told(loras=[lora("ink", "other words"), lora("anime")], upscalers=["latent", "esrgan"], resident=True)

    both = together([one, other]).capabilities

    assert both["loras"] == [lora("anime"), lora("detail"), lora("ink", "inky")]
    assert both["controls"] == [{"name": "canny", "kind": "canny"}]
    assert both["upscalers"] == ["esrgan", "latent"]


def test_all_else_is_as_a_node_has_it_that_has_the_model_on_its_device():
    one, other = (
        told(default_steps=30, loras=[lora("ink")]),
        told(default_steps=20, resident=True, tasks=("edit", "generation")),
    )

    both = together([one, other])

    assert (both.resident, both.tasks, both.capabilities) == (
        True,
        ["edit", "generation"],
        {"default_steps": 20, "loras": [lora("ink")]},
    )


def test_of_one_node_all_is_as_that_node_says():
    alone = told(loras=[lora("ink"), lora("anime")])

    assert together([alone]) is alone


async def _listed(house: House) -> list[str]:
    listed = (await house.client.get("/v1/models")).json()["data"]
    one = (await house.client.get(f"/v1/models/{MODEL}")).json()
    assert listed == [one]
    return [each["name"] for each in one["capabilities"]["loras"]]


async def test_the_loras_of_all_nodes_are_listed_as_long_as_their_nodes_are_there(make_house: MakeHouse):
    house = await make_house("a", "b", "c")
    for name, loras in {"a": ["ink"], "b": ["detail", "ink"]}.items():
        house.nodes[name].loras = loras
    await until(lambda: house.services.registry.abilities(MODEL).loras == {"ink", "detail"})

    assert await _listed(house) == ["detail", "ink"]

    house.nodes["b"].faults.mode = "status_500"
    await until(lambda: house.services.registry.get("b").lost.is_set())
    assert await _listed(house) == ["ink"]
