"""The exact-result cache: the same pictures again without a device, where an operator and the client want that."""

import io
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from common.catalog import RunStatus, open_asset_store
from tests.fakes.node import MODEL
from tests.router.conftest import USER_KEY, House, MakeHouse


def pictures(reply: httpx.Response) -> list[str]:
    return [item["b64_json"] for item in reply.json()["data"]]


def made(house: House) -> int:
    return sum(len(node.started) for node in house.nodes.values())


async def test_the_same_request_with_its_seed_is_answered_without_a_device_and_says_so(make_house: MakeHouse):
    house = await make_house("a", result_cache=True)

    first, again = await house.generate(seed=41, n=2), await house.generate(n=2, seed=41)

    assert pictures(again) == pictures(first)
    assert (again.json()["cached"], again.json()["cached_from"]) == (True, first.json()["id"])
    assert (again.headers["x-cache"], "x-cache" in first.headers) == ("hit", False)
    assert again.headers["x-run-id"] == again.json()["id"] != first.json()["id"]
    assert made(house) == 1
    run = await house.catalog.runs.get(again.json()["id"])
    assert (run.status, run.attempts, run.timings) == (RunStatus.SUCCEEDED, (), {})
    assert run.effective is not None
    assert run.effective["cached_from"] == first.json()["id"]
    [usage] = await house.catalog.quotas.usage(since="2000-01-01")
    assert (usage.runs, usage.images, usage.gpu_s) == (2, 4, pytest.approx(0.05))


async def test_how_the_answer_comes_does_not_matter(make_house: MakeHouse):
    house = await make_house("a", result_cache=True)
    first = await house.generate(seed=41)

    linked = await house.generate(seed=41, response_format="url")
    streamed = await house.generate(seed=41, stream=True)

    assert (await house.client.get(linked.json()["data"][0]["url"])).status_code == 200
    assert pictures(first)[0] in streamed.text
    assert "image_generation.completed" in streamed.text
    assert made(house) == 1


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {}),
        ({"seed": 1}, {"seed": 2}),
        ({"seed": 1}, {"seed": 1, "cache": False}),
        ({"seed": 1}, {"seed": 1, "steps": 9}),
        ({"seed": 1}, {"seed": 1, "output_format": "webp"}),
        ({"seed": 1, "loras": [{"name": "style"}]}, {"seed": 1, "loras": [{"name": "style"}]}),
    ],
)
async def test_what_is_not_surely_the_same_is_made_anew(make_house: MakeHouse, first: dict[str, Any], second: dict[str, Any]):
    house = await make_house("a", result_cache=True)
    house.nodes["a"].loras = ["style"]

    replies = [await house.generate(**first), await house.generate(**second)]

    assert [reply.status_code for reply in replies] == [200, 200]
    assert "cached" not in replies[1].json()
    assert made(house) == 2


async def test_another_keys_pictures_are_not_given_away(make_house: MakeHouse):
    house = await make_house("a", result_cache=True)
    await house.generate(seed=41)

    async with httpx.AsyncClient(base_url=house.url, headers={"authorization": f"Bearer {USER_KEY}"}) as user:
        reply = await user.post("/v1/images/generations", json={"prompt": "a cat", "model": MODEL, "seed": 41})

    assert "cached" not in reply.json()
    assert made(house) == 2


async def test_it_is_off_unless_it_is_wanted(make_house: MakeHouse):
    house = await make_house("a")

    for _ in range(2):
        await house.generate(seed=41)

    assert made(house) == 2


async def test_an_edit_is_known_by_its_picture(make_house: MakeHouse):
    house = await make_house("a", result_cache=True)

    async def edit(colour: str) -> httpx.Response:
        out = io.BytesIO()
        Image.new("RGB", (32, 32), colour).save(out, "PNG")
        files = {"image": ("a.png", out.getvalue(), "image/png")}
        return await house.client.post("/v1/images/edits", data={"prompt": "x", "model": MODEL, "seed": "4"}, files=files)

    replies = [await edit("red"), await edit("red"), await edit("blue")]

    assert ["cached" in reply.json() for reply in replies] == [False, True, False]


async def test_pictures_that_are_not_kept_any_more_are_made_anew(make_house: MakeHouse, tmp_path: Path):
    house = await make_house("a", result_cache=True)
    first = await house.generate(seed=41)
    [image] = (await house.catalog.runs.get(first.json()["id"])).images
    await open_asset_store(str(tmp_path / "assets")).delete(image.sha256)

    again = await house.generate(seed=41)

    assert (again.status_code, "cached" in again.json()) == (200, False)
    assert pictures(again) == pictures(first)


async def test_an_idempotency_key_stands_for_what_was_used_again(make_house: MakeHouse):
    house = await make_house("a", result_cache=True)
    asked = {"prompt": "a cat", "model": MODEL, "seed": 41}
    await house.generate(seed=41)

    replies = [
        await house.client.post("/v1/images/generations", json=asked, headers={"idempotency-key": "one"}) for _ in range(2)
    ]

    assert replies[0].content == replies[1].content
    assert (replies[0].json()["cached"], replies[1].headers["idempotent-replayed"]) == (True, "true")
