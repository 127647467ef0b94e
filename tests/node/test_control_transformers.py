"""ControlNets of the families that are transformers, on real classes with tiny weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from common.errors import ControlRefused
from node.control_net_classes import NETS
from node.control_requests import check_guidable, with_controls
from node.controls import find_controls
from node.decoding import Decoder
from node.engines.base import ControlMismatch, EngineFailed, Method, RunCancelled
from node.models import Models, find_models
from node.pipeline_classes import Family, class_of
from tests.node.bench import Bench, pixels
from tests.node.test_control_nets import scene, use
from tests.node.test_controls import ask

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

NAMES = {"flux.1-dev": Family.FLUX1, "sd3-medium": Family.SD3, "qwen-image": Family.QWEN_IMAGE}
LAYERS: dict[Family, dict[str, int]] = {
    Family.FLUX1: {"num_layers": 1, "num_single_layers": 1},
    Family.SD3: {"num_layers": 1},
    Family.QWEN_IMAGE: {"num_layers": 1},
}


def net_for(transformer: Any, family: Family, *, seed: int = 1, **changes: Any) -> Any:
    """A random ControlNet of the sizes of a transformer; `changes` of its config."""
    net_class = getattr(diffusers, NETS[family].name)
    known = {name: value for name, value in transformer.config.items() if not name.startswith("_")}
    torch.manual_seed(seed)
    net = net_class.from_config(known | LAYERS[family] | changes)
    with torch.no_grad():
        # Its outputs begin as zeros, as does what takes in the picture.
        for name, weight in net.named_parameters():
            if "controlnet_" in name or "pos_embed_input" in name:
                weight.normal_(0.0, 0.3)
    return net.eval()


@pytest.fixture(scope="module")
def models(families: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    for name, family in NAMES.items():
        (class_name,) = class_of(family).diffusers["transformer"]
        transformer = getattr(diffusers, class_name).from_pretrained(families / name / "transformer")
        net_for(transformer, family).save_pretrained(folder / "controlnet" / f"{name}-canny")
        net_for(transformer, family, seed=2).save_pretrained(folder / "controlnet" / f"{name}-second")
        wide = {"joint_attention_dim": transformer.config.joint_attention_dim + 8}
        net_for(transformer, family, **wide).save_pretrained(folder / "controlnet" / f"{name}-wide")
    found = find_models([families, folder])
    return replace(found, by_name={name: found.by_name[name] for name in NAMES})


@pytest.fixture(scope="module")
def bench(models: Models) -> Bench:
    return Bench(models)


@pytest.mark.parametrize("name", NAMES)
def test_they_are_found_with_the_family_of_their_tensors_and_their_memory_is_counted(models: Models, name: str):
    model = models.by_name[name]

    assert [each.name for each in model.controls] == [f"{name}-{kind}" for kind in ("canny", "second", "wide")]
    assert {each.family for each in model.controls} == {NAMES[name]}
    assert all(each.memory_bytes("float32") > 0 for each in model.controls)


@pytest.mark.parametrize("name", NAMES)
def test_one_changes_the_picture_by_its_own_picture_and_leaves_nothing_behind(bench: Bench, name: str):
    before = pixels(bench.make(name))
    guided = pixels(bench.make(name, controls=(use(f"{name}-canny"),)))
    elsewhere = pixels(bench.make(name, controls=(use(f"{name}-canny", picture=scene(25)),)))

    assert len({each[0] for each in (before, guided, elsewhere)}) == 3
    assert pixels(bench.make(name, controls=(use(f"{name}-canny"),))) == guided
    assert pixels(bench.make(name, controls=(use(f"{name}-canny", scale=0.0),))) == before
    assert pixels(bench.make(name)) == before


@pytest.mark.parametrize("name", NAMES)
def test_it_is_loaded_as_diffusers_own_way_loads_it(bench: Bench, models: Models, name: str):
    (place,) = (each.place for each in models.by_name[name].controls if each.name == f"{name}-canny")
    theirs = getattr(diffusers, NETS[NAMES[name]].name).from_pretrained(place.path.parent).state_dict()
    bench.make(name, controls=(use(f"{name}-canny"),))

    ours = bench.engine._control_nets[name]._loaded[f"of {name}-canny"].state_dict()

    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, ours[key]) for key, tensor in theirs.items())


@pytest.mark.parametrize("name", NAMES)
def test_more_scale_and_other_times_are_other_pictures(bench: Bench, name: str):
    one = use(f"{name}-canny")
    asked = [one, replace(one, scale=0.5), replace(one, end=0.5)]

    assert len({pixels(bench.make(name, steps=4, controls=(each,)))[0] for each in asked}) == 3


@pytest.mark.parametrize("name", ["flux.1-dev", "sd3-medium"])
def test_two_guide_together(bench: Bench, name: str):
    both = (use(f"{name}-canny"), use(f"{name}-second", picture=scene(25)))

    assert len({pixels(bench.make(name, controls=each))[0] for each in (both, both[:1], both[1:])}) == 3


async def test_of_qwen_image_one_guides_at_a_time(bench: Bench, models: Models):
    model, spec = models.by_name["qwen-image"], bench.spec("qwen-image")
    asks = [ask(name=f"qwen-image-{kind}") for kind in ("canny", "second")]

    with pytest.raises(ControlRefused, match="one ControlNet at a time, but got 2"):
        await with_controls(spec, asks, model, models.controls, Decoder(max_pixels=1))
    with pytest.raises(EngineFailed, match="one ControlNet at a time"):
        bench.make("qwen-image", controls=(use("qwen-image-canny"), use("qwen-image-second")))


@pytest.mark.parametrize("name", NAMES)
def test_one_of_other_sizes_is_refused_and_the_next_run_is_as_before(bench: Bench, name: str):
    before = pixels(bench.make(name))

    with pytest.raises(ControlMismatch, match="does not fit the model"):
        bench.make(name, controls=(use(f"{name}-wide"),))

    assert pixels(bench.make(name)) == before


@pytest.mark.parametrize("name", NAMES)
def test_a_cancelled_run_leaves_the_pipeline_as_it_was(bench: Bench, name: str):
    before = pixels(bench.make(name))

    def stop(step: int, steps: int) -> None:
        raise RunCancelled("enough")

    spec = bench.spec(name, controls=(use(f"{name}-canny"),))
    with pytest.raises(RunCancelled):
        bench.engine.generate(spec, None, stop, lambda index, image: None)

    assert pixels(bench.make(name)) == before


@pytest.mark.parametrize("name", NAMES)
def test_edits_take_none(bench: Bench, models: Models, name: str):
    spec = bench.spec(name, method=Method.IMAGE_TO_IMAGE, strength=0.5, controls=(use(f"{name}-canny"),))

    with pytest.raises(ControlRefused, match="image-to-image takes no 'control'"):
        check_guidable(spec, models.by_name[name])
    with pytest.raises(EngineFailed, match="no pipeline"):
        bench.engine._control_nets[name].guided(None, spec, {})


def test_those_for_inpainting_of_another_class_and_without_their_config_are_refused(bench: Bench, tmp_path: Path):
    transformer = bench.engine._loaded["qwen-image"][1].transformer
    folder = tmp_path / "controlnet"
    net_for(transformer, Family.QWEN_IMAGE, extra_condition_channels=4).save_pretrained(folder / "fill")
    sound = net_for(transformer, Family.QWEN_IMAGE)
    sound.save_pretrained(folder / "other")
    config = folder / "other" / "config.json"
    config.write_text(config.read_text().replace("QwenImageControlNetModel", "ControlNetModel"))
    sound.save_pretrained(tmp_path)
    (tmp_path / "diffusion_pytorch_model.safetensors").rename(folder / "alone.safetensors")

    reasons = {refusal.path.relative_to(folder).parts[0]: refusal.reason for refusal in find_controls([tmp_path]).refused}

    assert "for inpainting" in reasons["fill"]
    assert "its class is 'ControlNetModel'" in reasons["other"]
    assert "diffusers' folder with its config is needed" in reasons["alone.safetensors"]
