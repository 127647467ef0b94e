"""Variations by IP-Adapter: found with its encoder, what it changes, and that nothing of it stays."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from node.engines.base import EngineFailed, ImagePromptUse, Method, RunCancelled, RunSpec
from node.engines.image_prompting import prepared
from node.image_prompts import find_image_prompts
from node.masks import Canvas
from node.models import Models, find_models
from node.pipeline_classes import Family
from tests.checkpoints.controls import control_net, write_control
from tests.checkpoints.image_prompts import adapter_for, encoder, write_image_prompt
from tests.checkpoints.loras import random_lora, write_lora
from tests.checkpoints.tiny import unet
from tests.node.bench import Bench, pixels
from tests.node.test_adapters import use as lora_use
from tests.node.test_control_nets import SIZED
from tests.node.test_control_nets import use as control_use

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

NAMES = ("sd15", "sdxl")
USE = ImagePromptUse("x", "", "tiny", "")


def source(colour: str = "crimson") -> Canvas:
    picture = Image.new("RGB", (64, 64), colour)
    picture.paste("white", (10, 10, 30, 50))
    return Canvas(picture, None, (picture,))


@pytest.fixture(scope="module")
def models(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    for name, sizes in SIZED.items():
        write_image_prompt(folder, unet(**sizes), name)
    write_lora(folder / "loras" / "ink.safetensors", random_lora(unet(text_width=32), "unet"))
    write_control(folder / "controlnet" / "sd15-canny.safetensors", control_net(unet(**SIZED["sd15"])))
    found = find_models([tiny, folder])
    return replace(found, by_name={name: found.by_name[name] for name in NAMES})


@pytest.fixture(scope="module")
def bench(models: Models) -> Bench:
    return Bench(models)


def vary(bench: Bench, name: str, canvas: Canvas, **changes: Any) -> list[bytes]:
    given: dict[str, Any] = {"method": Method.IMAGE_PROMPT, "prompt": "", "image_prompt": USE, **changes}
    return pixels(bench.make(name, canvas, **given))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_the_picture_takes_the_place_of_words_and_nothing_stays(bench: Bench, name: str, guidance: float):
    before = pixels(bench.make(name, prompt="", guidance=guidance))
    unet_before = dict(bench.engine._loaded[name][1].unet.attn_processors)

    varied = vary(bench, name, source(), guidance=guidance)
    other = vary(bench, name, source("navy"), guidance=guidance)

    assert len({varied[0], other[0], before[0]}) == 3
    assert vary(bench, name, source(), guidance=guidance) == varied
    assert pixels(bench.make(name, prompt="", guidance=guidance)) == before
    pipeline = bench.engine._loaded[name][1]
    assert all(pipeline.unet.attn_processors[path] is processor for path, processor in unet_before.items())
    assert pipeline.unet.encoder_hid_proj is None


@pytest.mark.parametrize("name", NAMES)
def test_it_is_what_diffusers_own_way_makes(bench: Bench, models: Models, tiny: Path, name: str):
    import diffusers
    from transformers import CLIPImageProcessor

    model = models.by_name[name]
    assert model.image_prompt is not None
    spec: RunSpec = bench.spec(name, method=Method.IMAGE_PROMPT, prompt="", image_prompt=USE, sampler="checkpoint")
    pipeline = diffusers.DiffusionPipeline.from_pretrained(tiny / name, safety_checker=None, image_encoder=encoder())
    pipeline.set_progress_bar_config(disable=True)
    parts: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, tensor in load_file(model.image_prompt.adapter.place.path).items():
        part, _, rest = key.partition(".")
        parts[part][rest] = tensor
    pipeline.register_modules(feature_extractor=CLIPImageProcessor(size=32, crop_size=32))
    pipeline.load_ip_adapter(parts, subfolder="", weight_name="x")
    pipeline.set_ip_adapter_scale(1.0)
    by_hand = pipeline(
        "",
        ip_adapter_image=source().picture,
        width=64,
        height=64,
        num_inference_steps=spec.steps,
        guidance_scale=spec.guidance,
        generator=torch.Generator("cpu").manual_seed(41),
    ).images[0]

    made = Image.frombytes("RGB", (64, 64), vary(bench, name, source(), sampler="checkpoint")[0])

    apart = [abs(a - b) for a, b in zip(made.tobytes(), by_hand.tobytes(), strict=True)]
    assert max(apart) <= 2


def test_a_picture_is_prepared_as_clip_was_shown_pictures():
    from transformers import CLIPImageProcessor

    picture = Image.effect_noise((90, 60), 80).convert("RGB")
    theirs = CLIPImageProcessor(size=32, crop_size=32)(picture, return_tensors="pt").pixel_values

    # They scale the shorter side and round the longer one, which here makes no whole square of it.
    assert (prepared(picture, 32) - theirs).abs().mean() < 0.1


def test_control_nets_and_loras_work_beside_it(bench: Bench, models: Models):
    plain = vary(bench, "sd15", source())
    (ink,) = (file for file in models.loras if file.name == "ink")

    guided = vary(bench, "sd15", source(), controls=(control_use("sd15-canny"),))
    inked = vary(bench, "sd15", source(), loras=(lora_use(ink.path),))

    assert len({plain[0], guided[0], inked[0]}) == 3
    assert vary(bench, "sd15", source()) == plain


def test_a_cancelled_variation_leaves_the_pipeline_as_it_was(bench: Bench):
    before = pixels(bench.make("sd15"))

    def stop(step: int, steps: int) -> None:
        if step == 2:
            raise RunCancelled("enough")

    spec = bench.spec("sd15", steps=20, method=Method.IMAGE_PROMPT, prompt="", image_prompt=USE)
    with pytest.raises(RunCancelled):
        bench.engine.generate(spec, source(), stop, lambda index, image: None)

    assert pixels(bench.make("sd15")) == before


def test_an_adapter_that_does_not_fit_is_told_and_the_next_run_is_as_before(tiny: Path, tmp_path: Path):
    write_image_prompt(tmp_path, unet(text_width=40), "sd15")
    found = find_models([tiny, tmp_path])
    bench = Bench(replace(found, by_name={"sd15": found.by_name["sd15"]}))
    before = pixels(bench.make("sd15"))

    with pytest.raises(EngineFailed, match="does not fit the model 'sd15'"):
        vary(bench, "sd15", source())

    assert pixels(bench.make("sd15")) == before


def test_a_spec_with_it_survives_the_way_to_the_worker(bench: Bench):
    spec: RunSpec = bench.spec("sd15", method=Method.IMAGE_PROMPT, image_prompt=USE)

    assert RunSpec.from_json(spec.to_json()) == spec


def test_an_adapter_goes_with_the_encoder_of_its_width_and_real_widths_need_no_sidecar(tmp_path: Path):
    wide = {"image_proj.proj.weight": (8, 12), "ip_adapter.1.to_k_ip.weight": (4, 2048)}
    (tmp_path / "ipadapter").mkdir()
    save_file({name: torch.zeros(shape) for name, shape in wide.items()}, tmp_path / "ipadapter" / "xl.safetensors")
    alone = find_image_prompts([tmp_path])
    encoder().save_pretrained(tmp_path / "clip_vision" / "tiny")

    found = find_image_prompts([tmp_path])

    assert "gives the vectors it reads, 12 wide" in alone.refused[0].reason
    pair = found.fitting(Family.SDXL)
    assert pair is not None
    assert (pair.encoder.width, pair.encoder.heads, pair.encoder.layers, pair.encoder.image_px) == (16, 2, 2, 32)
    assert found.fitting(Family.SD15) is None


@pytest.mark.parametrize(
    ("tensors", "why"),
    [
        ({"image_proj.latents": (1, 16, 8)}, "of the kind `plus`"),
        ({"weight": (1,)}, "no plain IP-Adapter"),
        ({"image_proj.proj.weight": (8, 12), "ip_adapter.1.to_k_ip.weight": (4, 77)}, "for no family"),
        ({"image_proj.proj.weight": (8, 12), "ip_adapter.1.to_k_ip.weight": (4, 768), "x": (1,)}, "no plain IP-Adapter"),
    ],
)
def test_other_adapters_are_refused_with_their_reason(tmp_path: Path, tensors: dict[str, tuple[int, ...]], why: str):
    (tmp_path / "ipadapter").mkdir()
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, tmp_path / "ipadapter" / "x.safetensors")

    found = find_image_prompts([tmp_path])

    assert found.pairs == ()
    assert why in found.refused[0].reason


def test_pickles_and_encoders_that_cannot_be_built_are_refused(tmp_path: Path):
    for folder in ("ipadapter", "clip_vision"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "old.bin").write_bytes(b"x")
        (tmp_path / folder / "disguised.safetensors").write_bytes(b"\x80\x04\x95" + b"\x00" * 90)
    save_file(encoder().state_dict(), tmp_path / "clip_vision" / "bare.safetensors")
    save_file(adapter_for(unet(text_width=32)), tmp_path / "ipadapter" / "narrow.safetensors")

    found = find_image_prompts([tmp_path])

    reasons = {f"{refusal.path.parent.name}/{refusal.path.name}": refusal.reason for refusal in found.refused}
    assert found.pairs == ()
    assert "pickle formats are never loaded" in reasons["ipadapter/old.bin"]
    assert "a pickle" in reasons["clip_vision/disguised.safetensors"]
    assert "needs its config.json" in reasons["clip_vision/bare.safetensors"]
    assert "32 wide" in reasons["ipadapter/narrow.safetensors"]
