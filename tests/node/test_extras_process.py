"""ControlNets, upscaling, IP-Adapter and tiny previews as a client meets them: a real node process, OpenAI's own SDK."""

import base64
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image

from node.canny import canny
from tests.checkpoints.controls import control_net, write_control
from tests.checkpoints.image_prompts import write_image_prompt
from tests.checkpoints.tiny import unet
from tests.checkpoints.upscalers import random_net, write_upscaler
from tests.node.process import NodeProcess, running_node
from tests.node.test_control_nets import SIZED, scene
from tests.node.test_family_process import opened, png
from tests.node.test_tiny_vaes import in_makers_names, tiny_vae, write

ASK: dict[str, Any] = {"model": "sd15", "prompt": "a fox", "size": "64x64"}


@pytest.fixture(scope="module")
def node(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    folder = tmp_path_factory.mktemp("models")
    write_control(folder / "controlnet" / "canny.safetensors", control_net(unet(**SIZED["sd15"])))
    write_control(folder / "controlnet" / "wide-depth.safetensors", control_net(unet(text_width=40)))
    write_control(folder / "controlnet" / "xl-pose.safetensors", control_net(unet(**SIZED["sdxl"])))
    write_upscaler(folder / "upscale_models" / "x4.safetensors", random_net())
    write_image_prompt(folder, unet(**SIZED["sd15"]), "sd15")
    write(folder / "vae_approx" / "taesd_decoder.safetensors", in_makers_names(tiny_vae()))
    roots = {"AQUATINT__NODE__MODELS_DIRS": json.dumps([str(tiny), str(folder)])}
    with running_node(folder, tmp_path_factory.mktemp("home"), **roots) as started:
        yield started


def url(picture: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(png(picture)).decode()


def generate(node: NodeProcess, *control: dict[str, Any], upscale: Any = None, **changes: Any) -> Any:
    extra = {"seed": 41, "steps": 4, "control": list(control), "upscale": upscale}
    with node.sdk() as sdk:
        return sdk.images.generate(**ASK | changes, extra_body=extra)


def test_a_generation_is_guided_recorded_and_leaves_nothing_behind(node: NodeProcess):
    before = opened(generate(node))[0]
    answer = generate(node, {"kind": "canny", "image": url(scene()), "scale": 0.8, "end": 0.9})
    after = opened(generate(node))[0]

    guided = opened(answer)[0]
    assert guided.tobytes() != before.tobytes() == after.tobytes()
    (told,) = answer.parameters["control"]
    assert told | {"sha256": ""} == {
        "name": "canny",
        "kind": "canny",
        "scale": 0.8,
        "start": 0.0,
        "end": 0.9,
        "preprocess": "none",
        "sha256": "",
        "image_sha256": hashlib.sha256(png(scene())).hexdigest(),
    }
    assert len(told["sha256"]) == 64
    assert 'ControlNet 0: "Module: none, Model: canny, Weight: 0.8' in guided.info["parameters"]
    assert json.loads(guided.info["aquatint"])["controls"] == [told]
    assert "control" not in before.info["parameters"].lower()
    again = opened(generate(node, {"name": "canny", "image": url(scene()), "scale": 0.8, "end": 0.9}))[0]
    assert again.tobytes() == guided.tobytes()


def test_the_built_in_edges_are_those_of_a_ready_picture(node: NodeProcess):
    photo = Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 60).convert("RGB")

    found = generate(node, {"kind": "canny", "image": url(photo), "preprocess": "canny"})
    ready = generate(node, {"kind": "canny", "image": url(canny(photo))})
    as_it_is = generate(node, {"kind": "canny", "image": url(photo)})

    assert opened(found)[0].tobytes() == opened(ready)[0].tobytes() != opened(as_it_is)[0].tobytes()


def test_an_edit_is_guided_by_a_file_of_its_form_or_by_a_text(node: NodeProcess):
    start, body = png(Image.effect_noise((64, 64), 80).convert("RGB")), {"seed": "41", "steps": "4", "strength": "0.75"}
    form = body | {"model": "sd15", "prompt": "a fox", "response_format": "b64_json"}
    control = {"control": json.dumps([{"kind": "canny"}])}

    def edited(fields: dict[str, str], files: dict[str, bytes]) -> bytes:
        with node.http() as client:
            answer = client.post("/v1/images/edits", data=form | fields, files={k: ("x", v) for k, v in files.items()})
        assert answer.status_code == 200, answer.text
        picture = Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"])))
        return picture.tobytes()

    plain = edited({}, {"image": start})
    by_file = edited(control, {"image": start, "control_image": png(scene())})
    with node.sdk() as sdk:
        extra = {"seed": 41, "steps": 4, "strength": 0.75, "control": [{"kind": "canny", "image": url(scene())}]}
        by_sdk = opened(sdk.images.edit(model="sd15", prompt="a fox", image=start, extra_body=extra))[0]

    assert by_file != plain
    assert by_sdk.tobytes() == by_file


def test_v1_models_says_what_each_can_be_guided_by(node: NodeProcess):
    with node.http() as client:
        told = {each["id"]: each["capabilities"]["controls"] for each in client.get("/v1/models").json()["data"]}

    assert told["sd15"] == [{"name": "canny", "kind": "canny"}, {"name": "wide-depth", "kind": "depth"}]
    assert told["sdxl"] == [{"name": "xl-pose", "kind": "pose"}]
    assert told["z-image"] == []
    (sd15,) = (model for model in node.status().models if model.id == "sd15")
    assert "a ControlNet for canny" in sd15.extras


@pytest.mark.parametrize(
    ("control", "model", "code", "message"),
    [
        ({"name": "xl-pose"}, "sd15", "control_incompatible", "was made for sdxl"),
        ({"kind": "pose"}, "sd15", "control_not_found", "there are ControlNets for canny, depth"),
        ({"name": "../canny"}, "sd15", "control_not_found", "There is no ControlNet"),
        ({"kind": "canny"}, "z-image", "control_unsupported", "guide models of sd15, sdxl"),
    ],
)
def test_what_cannot_guide_is_refused(node: NodeProcess, control: dict[str, Any], model: str, code: str, message: str):
    with pytest.raises(openai.BadRequestError, match=message) as told:
        generate(node, control | {"image": url(scene())}, model=model)

    assert (told.value.param, told.value.code) == ("control", code)


def test_one_whose_tensors_do_not_fit_is_a_422_and_a_broken_picture_a_400(node: NodeProcess):
    before = opened(generate(node))[0]

    with pytest.raises(openai.UnprocessableEntityError, match="does not fit the model 'sd15'") as told:
        generate(node, {"kind": "depth", "image": url(scene())})
    with pytest.raises(openai.BadRequestError, match=r"control\[0\]\.image"):
        generate(node, {"kind": "canny", "image": base64.b64encode(png(scene())[:-40]).decode()})

    assert told.value.code == "control_mismatch"
    assert opened(generate(node))[0].tobytes() == before.tobytes()


def test_a_picture_is_made_larger_by_a_second_pass_or_a_network_and_the_answer_says_how(node: NodeProcess):
    plain = opened(generate(node))[0]
    drawn_over = generate(node, upscale={"by": 1.5, "strength": 0.5})
    by_net = generate(node, upscale={"by": 2, "method": "x4"})

    assert drawn_over.size == "96x96"
    assert [picture.size for picture in (*opened(drawn_over), *opened(by_net))] == [(96, 96), (128, 128)]
    told = drawn_over.parameters["upscale"]
    assert told == {"by": 1.5, "method": "latent", "strength": 0.5, "size": "96x96", "drawn": "96x96", "sha256": None}
    assert len(by_net.parameters["upscale"]["sha256"]) == 64
    assert 'Hires upscale: 1.5, Hires upscaler: "latent"' in opened(drawn_over)[0].info["parameters"]
    assert 'Postprocess upscaler: "x4"' in opened(by_net)[0].info["parameters"]
    assert opened(generate(node, upscale={"by": 2, "method": "x4"}))[0].tobytes() == opened(by_net)[0].tobytes()
    assert opened(generate(node))[0].tobytes() == plain.tobytes()
    with node.http() as client:
        told = {each["id"]: each["capabilities"]["upscalers"] for each in client.get("/v1/models").json()["data"]}
    assert told["sd15"] == told["z-image"] == ["latent", "x4"]


@pytest.mark.parametrize(
    ("upscale", "param", "message"),
    [
        ({"method": "../x4"}, "upscale.method", "There is no upscaler"),
        ({"by": 4, "method": "latent"}, "upscale.by", "width must be"),
    ],
)
def test_a_way_that_is_not_here_or_a_picture_too_large_is_refused(
    node: NodeProcess, upscale: dict[str, Any], param: str, message: str
):
    with pytest.raises(openai.BadRequestError, match=message) as told:
        generate(node, upscale=upscale, size="1024x1024")

    assert told.value.param == param


def test_an_edit_with_a_mask_keeps_its_size(node: NodeProcess):
    start = Image.effect_noise((64, 64), 80).convert("RGB")
    mask = Image.new("RGBA", (64, 64), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (10, 10, 40, 40))
    with node.sdk() as sdk, pytest.raises(openai.BadRequestError, match="keeps the size of its picture") as told:
        sdk.images.edit(model="sd15", prompt="x", image=png(start), mask=png(mask), extra_body={"upscale": {"by": 2}})

    assert told.value.code == "upscale_unsupported"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_variation_is_made_by_the_adapter_unless_a_strength_is_given_and_says_which_way(node: NodeProcess):
    before, picture = opened(generate(node))[0], png(scene())
    with node.sdk() as sdk:
        extra = {"seed": 41, "steps": 4}
        by_prompt, again = (sdk.images.create_variation(model="sd15", image=picture, extra_body=extra) for _ in range(2))
        drawn_over = sdk.images.create_variation(model="sd15", image=picture, extra_body=extra | {"strength": 0.5})
        other = sdk.images.create_variation(model="sdxl", image=picture, extra_body=extra)

    assert by_prompt.parameters["method"] == "image-prompt"
    assert by_prompt.parameters["image_prompt"]["adapter"] == "sd15"
    assert len(by_prompt.parameters["image_prompt"]["encoder_sha256"]) == 64
    assert drawn_over.parameters["method"] == other.parameters["method"] == "image-to-image"
    assert opened(by_prompt)[0].tobytes() == opened(again)[0].tobytes() != opened(drawn_over)[0].tobytes()
    assert opened(generate(node))[0].tobytes() == before.tobytes()


def test_previews_come_from_the_tiny_autoencoder_and_the_picture_does_not(node: NodeProcess):
    plain = opened(generate(node))[0]
    with node.sdk() as sdk:
        extra = {"seed": 41, "steps": 4, "partial_images": 2}
        events = list(sdk.images.generate(**ASK, stream=True, extra_body=extra))
    with node.http() as client:
        told = {each["id"]: each["capabilities"]["previews_by"] for each in client.get("/v1/models").json()["data"]}

    pictures = [Image.open(io.BytesIO(base64.b64decode(event.b64_json))) for event in events]
    assert [picture.size for picture in pictures] == [(64, 64)] * 3
    assert pictures[-1].tobytes() == plain.tobytes()
    assert (told["sd15"], told["sdxl"]) == ("taesd_decoder", "its own autoencoder")
