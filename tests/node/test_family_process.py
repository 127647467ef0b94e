"""The larger families as a client meets them: a real node process, OpenAI's own SDK."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

from tests.node.bench import noise
from tests.node.process import NodeProcess, running_node

VARIATION = "Create a variation of this image, keep subject and style."


@pytest.fixture(scope="module")
def node(families: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with running_node(families, tmp_path_factory.mktemp("home")) as started:
        yield started


def png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def opened(answer: Any) -> list[Image.Image]:
    return [Image.open(io.BytesIO(base64.b64decode(each.b64_json))) for each in answer.data]


DRAWING = ("flux.1-dev", "flux.1-schnell", "flux.1-kontext", "flux.2-klein-4b", "qwen-image", "sana", "sd3-medium")


@pytest.mark.parametrize("model", DRAWING)
def test_every_family_makes_a_picture_and_makes_it_again(node: NodeProcess, model: str):
    ask: dict[str, Any] = {"model": model, "prompt": "a fox", "size": "90x70", "extra_body": {"seed": 41, "steps": 2}}
    with node.sdk() as sdk:
        first, again = (opened(sdk.images.generate(**ask))[0] for _ in range(2))
        other = opened(sdk.images.generate(**ask | {"extra_body": {"seed": 42, "steps": 2}}))[0]

    assert first.size == (90, 70)
    assert first.tobytes() == again.tobytes() != other.tobytes()


def test_capabilities_say_what_each_model_can_be_asked_for(node: NodeProcess):
    with node.http() as client:
        models = {each["id"]: each for each in client.get("/v1/models").json()["data"]}
    told = {name: (each["tasks"], each["capabilities"]["max_input_images"]) for name, each in models.items()}

    assert told["flux.1-dev"] == (["generation", "edit", "variation"], 1)
    assert told["flux.2-klein-4b"] == (["generation", "edit", "variation"], 4)
    assert told["qwen-image-edit"] == (["edit", "variation"], 1)
    assert told["qwen-image-edit-plus"] == (["edit", "variation"], 3)
    assert told["sana"] == (["generation"], 1)


def test_what_a_family_cannot_do_is_refused_before_it_is_queued(node: NodeProcess):
    with node.sdk() as sdk:
        with pytest.raises(openai.BadRequestError, match="makes no generation; it can be asked for: edit, variation") as no:
            sdk.images.generate(model="qwen-image-edit", prompt="a fox")
        assert (no.value.code, no.value.param) == ("unsupported_task", "model")
        with pytest.raises(openai.BadRequestError, match="makes no edit"):
            sdk.images.edit(model="sana", prompt="x", image=png(noise()))
        with pytest.raises(openai.BadRequestError, match="takes at most 3 images, but got 4 instead") as no:
            sdk.images.edit(model="qwen-image-edit-plus", prompt="x", image=[png(noise())] * 4)
        assert no.value.code == "array_above_max_length"
        with pytest.raises(openai.BadRequestError, match="takes at most 1 image, but got 2 instead"):
            sdk.images.edit(model="flux.1-dev", prompt="x", image=[png(noise())] * 2)
        with pytest.raises(openai.BadRequestError, match="at most 8 times the shorter"):
            sdk.images.edit(model="flux.2-klein-4b", prompt="x", image=png(noise(900, 100)))

    assert not node.status().jobs


def edited(node: NodeProcess, *pictures: Image.Image, **fields: Any) -> tuple[Image.Image, dict[str, Any], str]:
    """The picture, what ran, and what was ignored."""
    ask = {"model": "flux.2-klein-4b", "prompt": "make it blue", "extra_body": {"seed": 41, "steps": 1}} | fields
    with node.sdk() as sdk:
        raw = sdk.images.with_raw_response.edit(image=[png(each) for each in pictures], **ask)
    body = json.loads(raw.content)
    picture = Image.open(io.BytesIO(base64.b64decode(body["data"][0]["b64_json"])))
    return picture, body["parameters"], raw.headers.get("x-ignored-params", "")


def test_an_edit_with_several_pictures_sees_each_of_them_in_order(node: NodeProcess):
    one, two = noise(96, 72), Image.new("RGB", (50, 90), "red")
    first, parameters, _ = edited(node, one, two)

    assert (first.size, parameters["method"], parameters["strength"]) == ((96, 72), "edit", None)
    assert first.tobytes() == edited(node, one, two)[0].tobytes()
    assert len({edited(node, *each)[0].tobytes() for each in ((one, two), (two, one), (one,))}) == 3


def test_strength_has_no_effect_where_nothing_starts_from_the_picture(node: NodeProcess):
    _, _, ignored = edited(node, noise(), extra_body={"strength": 0.3, "input_fidelity": "high", "steps": 1})

    assert set(ignored.split(",")) == {"strength", "input_fidelity"}


@pytest.mark.parametrize(("pictures", "method"), [(1, "inpaint"), (2, "edit")])
def test_a_mask_keeps_what_lies_outside_it_with_any_number_of_pictures(node: NodeProcess, pictures: int, method: str):
    picture, mask = noise(96, 72), Image.new("RGBA", (96, 72), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (10, 10, 60, 60))

    made, parameters, _ = edited(node, picture, *[noise()] * (pictures - 1), mask=png(mask))

    outside = Image.composite(picture, made, mask.getchannel("A"))
    assert parameters["method"] == method
    assert made.tobytes() == outside.tobytes() != picture.tobytes()


def test_a_variation_by_a_model_that_follows_instructions_is_told_so(node: NodeProcess):
    with node.http() as client:
        fields = {"model": "flux.2-klein-4b", "response_format": "b64_json", "steps": "1"}
        answer = client.post("/v1/images/variations", data=fields, files={"image": png(noise())})
    parameters = answer.json()["parameters"]

    assert (parameters["method"], parameters["prompt"]) == ("edit", VARIATION)


@pytest.mark.parametrize("model", ["flux.1-kontext", "qwen-image-edit", "qwen-image-edit-plus"])
def test_every_editing_family_edits(node: NodeProcess, model: str):
    made, parameters, _ = edited(node, noise(96, 72), model=model)

    assert (made.size, parameters["method"]) == ((96, 72), "edit")
