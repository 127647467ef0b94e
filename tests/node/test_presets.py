"""Presets: less is computed, the picture is nearly the same, and the next run knows nothing of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from common.errors import InvalidRequest
from common.images_api import ImageRequest, Preset, Size, Task
from node.engines.base import Method, RunCancelled, RunSpec
from node.likeness import EQUAL_DB, psnr_db
from node.masks import Canvas
from node.models import Models, find_models
from node.pipeline_classes import class_of
from node.presets import CACHES
from node.profile import Profile, profiles
from node.resolve import resolve
from node.worker.parameters import parameters_text
from tests.node.bench import Bench, noise, pixels

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

QUICK = [Preset.BALANCED, Preset.FAST]
UNETS = ("sd15", "sdxl")
TRANSFORMERS = ("flux.1-dev", "flux.1-kontext", "flux.2-klein-base-4b", "qwen-image")
STEPS = 9
WITHOUT = ("flux.1-schnell", "flux.2-klein-4b", "sana", "sd3-medium", "sdxl-turbo", "z-image-turbo")


@pytest.fixture(scope="module")
def bench(tiny: Path, families: Path) -> Bench:
    return Bench(find_models([tiny, families]))


@contextmanager
def counted(bench: Bench, name: str) -> Iterator[list[int]]:
    """One entry for each time that an inner part of the denoiser is really computed."""
    loaded = bench.engine._loaded[name][1]
    denoiser = getattr(loaded, class_of(bench.models.by_name[name].checkpoint.family).denoiser)
    if name in UNETS:
        inner = denoiser.mid_block.resnets[0]
    else:
        blocks = getattr(denoiser, "single_transformer_blocks", None) or denoiser.transformer_blocks
        # What the block's attention ends with.
        ends = ("proj_out", "attn.to_out", "attn.to_out.0")
        parts = blocks[-1].named_modules()
        inner = next(module for part, module in parts if part in ends and isinstance(module, torch.nn.Linear))
    calls: list[int] = []
    hook = inner.register_forward_hook(lambda *given: calls.append(1))
    try:
        yield calls
    finally:
        hook.remove()


@pytest.mark.parametrize("preset", QUICK)
@pytest.mark.parametrize("name", [*UNETS, *TRANSFORMERS])
def test_a_preset_leaves_no_trace_in_the_next_picture(bench: Bench, name: str, preset: Preset):
    with counted(bench, name) as calls:
        full = pixels(bench.make(name, steps=STEPS))
    with counted(bench, name) as fewer:
        quick = pixels(bench.make(name, steps=STEPS, preset=preset))

    cache = bench.models.by_name[name].profile.presets[preset]
    assert len(fewer) < len(calls) or cache.cache == "first-block"
    assert quick == pixels(bench.make(name, steps=STEPS, preset=preset))
    assert full == pixels(bench.make(name, steps=STEPS))


@pytest.mark.parametrize("name", [*UNETS, *TRANSFORMERS])
def test_each_picture_of_a_run_begins_anew(bench: Bench, name: str):
    two = pixels(bench.make(name, steps=STEPS, seeds=(41, 42), preset=Preset.FAST))

    assert two == [pixels(bench.make(name, steps=STEPS, seeds=(seed,), preset=Preset.FAST))[0] for seed in (41, 42)]


@pytest.mark.parametrize("name", [*UNETS, *TRANSFORMERS])
def test_a_run_cancelled_under_a_preset_leaves_the_pipeline_as_it_was(bench: Bench, name: str):
    before = pixels(bench.make(name, steps=STEPS))

    def stop(step: int, steps: int) -> None:
        if step == 5:
            raise RunCancelled("enough")

    for preset in QUICK:
        with pytest.raises(RunCancelled, match="enough"):
            bench.engine.generate(bench.spec(name, steps=STEPS, preset=preset), None, stop, lambda index, image: None)

    assert pixels(bench.make(name, steps=STEPS)) == before


@pytest.mark.parametrize("preset", QUICK)
@pytest.mark.parametrize("name", ["sd15", "flux.1-dev", "qwen-image"])
def test_presets_work_for_pictures_that_start_from_others(bench: Bench, name: str, preset: Preset):
    how: dict[str, Any] = {"method": Method.IMAGE_TO_IMAGE, "strength": 0.9, "steps": STEPS}
    start = Canvas(noise(), None)
    full = pixels(bench.make(name, start, **how))
    bench.make(name, start, **how, preset=preset)

    assert pixels(bench.make(name, start, **how)) == full


@pytest.mark.parametrize("name", ["flux.1-kontext", "qwen-image-edit"])
def test_presets_work_for_edits_by_instruction(bench: Bench, name: str):
    how: dict[str, Any] = {"method": Method.EDIT, "steps": 5}
    start = Canvas(Image.new("RGB", (64, 64), "red"), None, (Image.new("RGB", (64, 64), "red"),))
    full = pixels(bench.make(name, start, **how))

    assert {len(bench.make(name, start, **how, preset=preset).images) for preset in QUICK} == {1}
    assert pixels(bench.make(name, start, **how)) == full


def test_the_inner_blocks_of_a_unet_are_computed_at_every_nth_step(bench: Bench):
    for preset, every in ((Preset.BALANCED, 2), (Preset.FAST, 3)):
        with counted(bench, "sd15") as calls:
            bench.make("sd15", steps=STEPS, preset=preset)
        assert len(calls) == -(-STEPS // every)


def test_a_first_block_that_stands_still_is_computed_alone(bench: Bench):
    order, pipeline = bench.engine._loaded["qwen-image"]
    presets = {Preset.FAST: order.profile.presets[Preset.BALANCED].model_copy(update={"threshold": 1.0})}
    from dataclasses import replace

    bench.engine._loaded["qwen-image"] = (
        replace(order, profile=order.profile.model_copy(update={"presets": presets})),
        pipeline,
    )
    try:
        with counted(bench, "qwen-image") as calls:
            bench.make("qwen-image", steps=STEPS, preset=Preset.FAST)
    finally:
        bench.engine._loaded["qwen-image"] = (order, pipeline)

    assert len(calls) == 2


@pytest.mark.parametrize(("preset", "least_db"), [(Preset.BALANCED, 45.0), (Preset.FAST, 38.0)])
def test_pictures_of_the_demonstration_model_stay_what_they_are(preset: Preset, least_db: float):
    models = find_models([])
    bench, size = Bench(models), Size(256, 256)
    how: dict[str, Any] = {"prompt": "a large red circle on the left, on a blue background", "drawn": size, "size": size}
    full, quick = (bench.make(models.default.name, steps=20, preset=each, **how).images[0] for each in (Preset.FULL, preset))

    assert least_db < psnr_db(full, quick) < EQUAL_DB


def ask(profile: str, usual: Preset = Preset.FULL, **fields: Any) -> RunSpec:
    request = ImageRequest(**{"task": Task.GENERATION, "prompt": "a fox", "seed": 41} | fields)
    return resolve(request, "model", profiles()[profile], embed_parameters=False, preset=usual).spec


@pytest.mark.parametrize("profile", WITHOUT)
def test_a_preset_that_a_model_does_not_have_is_refused(profile: str):
    with pytest.raises(InvalidRequest, match="Invalid 'preset': this model has 'full', but got 'fast'") as no:
        ask(profile, preset=Preset.FAST)

    assert no.value.param == "preset"
    assert ask(profile, Preset.FAST).preset is Preset.FULL


def test_a_request_wins_over_the_profile_and_the_profile_over_the_node():
    assert ask("sd15").preset is Preset.FULL
    assert ask("sd15", Preset.FAST).preset is Preset.FAST
    assert ask("sd15", Preset.FAST, preset=Preset.FULL).preset is Preset.FULL
    own = profiles()["sd15"].model_copy(update={"default_preset": Preset.BALANCED})
    request = ImageRequest(task=Task.GENERATION, prompt="a fox")
    assert resolve(request, "m", own, embed_parameters=False, preset=Preset.FAST).spec.preset is Preset.BALANCED


def test_beside_true_guidance_only_whole_steps_are_made():
    with pytest.raises(InvalidRequest, match="only 'full' beside a true_cfg_scale above 1"):
        ask("flux.1-dev", preset=Preset.FAST, true_cfg_scale=4.0)

    assert ask("flux.1-dev", Preset.FAST, true_cfg_scale=4.0).preset is Preset.FULL
    assert ask("qwen-image", preset=Preset.FAST, true_cfg_scale=4.0).preset is Preset.FAST


@pytest.mark.parametrize("presets", [{"fast": {"cache": "deep", "every": 3}}, {"full": {"cache": "taylor", "every": 3}}])
def test_a_profile_cannot_claim_what_its_family_does_not_do(presets: dict[str, Any]):
    with pytest.raises(ValidationError, match="presets"):
        Profile.model_validate(profiles()["flux.1-dev"].model_dump(mode="json") | {"presets": presets})


@pytest.mark.parametrize(
    "cache", [{"cache": "deep"}, {"cache": "first-block", "every": 2}, {"cache": "taylor", "threshold": 0.1}]
)
def test_a_cache_has_the_numbers_of_its_kind(cache: dict[str, Any]):
    with pytest.raises(ValidationError, match="`first-block` has a threshold"):
        Profile.model_validate(profiles()["qwen-image"].model_dump(mode="json") | {"presets": {"fast": cache}})


def test_presets_are_shipped_for_every_family_that_can(tiny_models: Models):
    can = {profile.family for profile in profiles().values() if profile.presets}

    assert can == set(CACHES)
    assert set(tiny_models.by_name["sd15"].capabilities["presets"]) == {"balanced", "fast"}
    assert tiny_models.by_name["z-image"].capabilities["presets"] == {}


def test_the_file_says_which_preset_made_it():
    assert "Preset: fast" in parameters_text(ask("sd15", preset=Preset.FAST), 41)
    assert "Preset" not in parameters_text(ask("sd15"), 41)
    assert RunSpec.from_json(ask("sd15", preset=Preset.FAST).to_json()).preset is Preset.FAST
