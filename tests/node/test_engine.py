"""The diffusers engine on real classes with tiny weights: seeds, sizes, steps, cancelling, and what is told of a prompt."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.stable_diffusion_xl import (
    pipeline_stable_diffusion_xl_img2img,
    pipeline_stable_diffusion_xl_inpaint,
)
from PIL import Image

from common.images_api import Size
from node.engines.base import EngineFailed, Method, OutOfDeviceMemory, RunCancelled
from node.masks import Canvas
from node.models import Model, Models, find_models
from tests.node.bench import Bench, noise, pixels

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

NAMES = ("sd15", "sdxl", "sdxl-turbo", "z-image")


def unwatched(index: int, image: Image.Image) -> None:
    """Nobody asked for previews."""


@pytest.fixture(scope="module")
def bench(tiny_models: Models) -> Bench:
    return Bench(tiny_models)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_is_the_same_picture_alone_or_beside_others(bench: Bench, name: str):
    three = pixels(bench.make(name, seeds=(41, 42, 43)))

    assert three == pixels(bench.make(name, seeds=(41, 42, 43)))
    assert three == [pixels(bench.make(name, seeds=(seed,)))[0] for seed in (41, 42, 43)]
    assert len(set(three)) == 3


@pytest.mark.parametrize("name", NAMES)
def test_another_prompt_is_another_picture(bench: Bench, name: str):
    assert pixels(bench.make(name)) != pixels(bench.make(name, prompt="a small blue square"))


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_a_negative_prompt_has_an_effect_where_there_is_guidance(bench: Bench, name: str):
    assert pixels(bench.make(name)) != pixels(bench.make(name, negative_prompt="square"))


@pytest.mark.parametrize("name", NAMES)
def test_pictures_have_the_size_asked_for_cut_from_the_middle(bench: Bench, name: str):
    step_px = bench.models.by_name[name].profile.size_step_px
    drawn = Size(80, 64).rounded_up_to(step_px)
    (whole,) = bench.make(name, drawn=drawn, size=drawn).images
    (cut,) = bench.make(name, drawn=drawn, size=Size(70, 60)).images

    assert cut.size == (70, 60)
    assert cut.mode == "RGB"
    assert cut.tobytes() == whole.crop((5, 2, 75, 62)).tobytes()


def forwards(bench: Bench, name: str, steps: int) -> int:
    """How often the denoiser really runs."""
    pipeline = bench.engine._loaded[name][1]
    denoiser = getattr(pipeline, "transformer", None) or pipeline.unet
    calls = []
    hook = denoiser.register_forward_hook(lambda *given: calls.append(1))
    try:
        bench.make(name, steps=steps)
    finally:
        hook.remove()
    return len(calls)


@pytest.mark.parametrize(
    ("name", "steps"), [("z-image", 8), ("z-image", 4), ("sdxl-turbo", 1), ("sdxl-turbo", 4), ("sd15", 5), ("sdxl", 5)]
)
def test_steps_are_forward_passes(bench: Bench, name: str, steps: int):
    assert forwards(bench, name, steps) == steps


def test_every_step_of_every_picture_is_reported(bench: Bench):
    told: list[tuple[int, int]] = []
    bench.engine.generate(
        bench.spec("sd15", seeds=(1, 2), steps=3), None, lambda step, steps: told.append((step, steps)), unwatched
    )

    assert told == [(n, 6) for n in range(1, 7)]


@pytest.mark.parametrize("name", NAMES)
def test_a_run_cancelled_at_a_step_leaves_the_pipeline_as_it_was(bench: Bench, name: str):
    before = pixels(bench.make(name))

    def stop(step: int, steps: int) -> None:
        if step == 2:
            raise RunCancelled("enough")

    with pytest.raises(RunCancelled, match="enough"):
        bench.engine.generate(bench.spec(name), None, stop, unwatched)

    assert pixels(bench.make(name)) == before


@pytest.mark.parametrize("sampler", ["checkpoint", "euler", "euler-a", "dpmpp-2m-karras", "ddim", "lcm"])
def test_every_sampler_runs_and_repeats(bench: Bench, sampler: str):
    made = bench.make("sd15", sampler=sampler, steps=4)

    assert pixels(made) == pixels(bench.make("sd15", sampler=sampler, steps=4))
    assert made.sampler.endswith("Scheduler")


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_is_counted_and_its_truncation_told(bench: Bench, name: str):
    short = bench.make(name, prompt="abc")
    long = bench.make(name, prompt="abc " * 300)

    assert (short.prompt_tokens, short.prompt_truncated) == (3, False)
    assert long.prompt_tokens >= 900
    # CLIP reads it in windows; Z-Image's encoder reads 512 tokens.
    assert long.prompt_truncated == (name == "z-image")


@pytest.mark.parametrize("name", ["sd15", "sdxl"])
def test_of_a_prompt_beyond_all_windows_the_rest_is_cut_off_and_told(bench: Bench, name: str):
    assert bench.make(name, prompt="abc " * 1000).prompt_truncated


def test_a_profile_can_switch_weights_off(tiny_models: Models):
    bench = Bench(Models({}))
    bench.models = tiny_models
    order = tiny_models.by_name["sd15"].load_order("cpu", "float32")
    bench.engine.load(replace(order, profile=order.profile.model_copy(update={"prompt_weights": False})))

    assert pixels(bench.make("sd15", prompt="(a:2)")) != pixels(Bench(tiny_models).make("sd15", prompt="(a:2)"))
    assert bench.make("sd15", prompt="abc " * 30).prompt_truncated


def test_phases_are_timed(bench: Bench):
    made = bench.make("sd15")

    assert set(made.timings_s) == {"encode", "denoise", "decode"}
    assert all(seconds > 0 for seconds in made.timings_s.values())


def test_running_what_is_not_loaded_is_an_error(bench: Bench):
    with pytest.raises(EngineFailed, match="is not loaded"):
        bench.engine.generate(replace(bench.spec("sd15"), model="other"), None, lambda step, steps: None, unwatched)


def test_unloading_frees_the_weights_and_may_be_repeated(tiny_models: Models):
    import weakref

    bench = Bench(tiny_models)
    unet = weakref.ref(bench.engine._loaded["sd15"][1].unet)

    bench.engine.unload("sd15")
    bench.engine.unload("sd15")

    assert unet() is None


@pytest.mark.parametrize(
    ("error", "ours"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), OutOfDeviceMemory),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), OutOfDeviceMemory),
        (RuntimeError("could not create a primitive"), OutOfDeviceMemory),
        (MemoryError(), OutOfDeviceMemory),
        (RuntimeError("a secret prompt in a message"), EngineFailed),
        (ValueError("a secret prompt in a message"), EngineFailed),
    ],
)
def test_library_errors_are_told_as_ours_without_the_prompt(bench: Bench, error: Exception, ours: type[Exception]):
    def fail(step: int, steps: int) -> None:
        raise error

    with pytest.raises(ours) as told:
        bench.engine.generate(bench.spec("sd15"), None, fail, unwatched)

    assert "secret" not in str(told.value)


def test_files_without_all_weights_are_refused(tiny: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "models" / "sd15"
    shutil.copytree(tiny / "sd15", folder)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(file)
    weights.popitem()
    save_file(weights, file)
    model: Model = find_models([tmp_path / "models"]).default
    from node.engines.diffusers_engine import DiffusersEngine

    with pytest.raises(EngineFailed, match="Loading 'sd15'"):
        DiffusersEngine("cpu").load(model.load_order("cpu", "float32"))


def test_half_precision_weights_run(tiny_models: Models):
    bench = Bench(Models({}))
    bench.models = tiny_models
    bench.engine.load(tiny_models.by_name["z-image"].load_order("cpu", "bfloat16"))

    (image,) = bench.make("z-image").images

    assert isinstance(image, Image.Image)
    assert pixels(bench.make("z-image")) == [image.tobytes()]


def distance(left: Image.Image, right: Image.Image) -> float:
    """Mean absolute difference of two pictures of one size, 0..255."""
    pairs = zip(left.tobytes(), right.tobytes(), strict=True)
    return sum(abs(a - b) for a, b in pairs) / (3 * left.width * left.height)


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_can_be_the_start_of_another_and_strength_0_gives_it_back(bench: Bench, name: str):
    start = Canvas(noise(), None)

    same = bench.make(name, start, method=Method.IMAGE_TO_IMAGE, strength=0.0, steps=4).images[0]
    changed = bench.make(name, start, method=Method.IMAGE_TO_IMAGE, strength=0.5, steps=4).images[0]

    assert same.tobytes() == start.picture.tobytes()
    assert changed.size == (64, 64)
    assert changed.tobytes() != start.picture.tobytes()
    assert bench.make(name, start, method=Method.IMAGE_TO_IMAGE, strength=0.5, steps=4).images[0].tobytes() == changed.tobytes()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(64, 64), (60, 52)])
def test_outside_a_mask_every_pixel_stays(bench: Bench, name: str, size: tuple[int, int]):
    repaint = Image.new("L", size, 0)
    repaint.paste(255, (10, 10, 40, 40))
    start = Canvas(noise(*size), repaint)

    made = bench.make(name, start, method=Method.INPAINT, strength=1.0, steps=4, size=Size(*size), feather_px=4).images[0]

    inside = Image.composite(made, start.picture, repaint)
    assert made.size == size
    assert made.tobytes() == inside.tobytes()
    assert made.tobytes() != start.picture.tobytes()


def test_methods_share_one_set_of_weights(bench: Bench):
    bench.make("sd15", Canvas(noise(), None), method=Method.IMAGE_TO_IMAGE, strength=0.5)
    engine = bench.engine

    _, loaded = engine._loaded["sd15"]
    other = engine._others["sd15", Method.IMAGE_TO_IMAGE]

    assert other.unet is loaded.unet
    assert other.vae is loaded.vae


@pytest.mark.parametrize("name", NAMES)
def test_previews_are_pictures_of_the_size_asked_for_in_their_order(bench: Bench, name: str):
    seen: list[tuple[int, tuple[int, int]]] = []
    steps = 4 if name == "sdxl-turbo" else 8

    made = bench.make(name, None, lambda i, image: seen.append((i, image.size)), steps=steps, previews=3, size=Size(60, 64))

    assert seen == [(0, (60, 64)), (1, (60, 64)), (2, (60, 64))]
    assert made.images[0].tobytes() == bench.make(name, steps=steps, size=Size(60, 64)).images[0].tobytes()


def test_no_pipeline_of_sdxl_puts_its_watermark_into_pictures_where_the_library_for_it_is_installed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    for module in (pipeline_stable_diffusion_xl_img2img, pipeline_stable_diffusion_xl_inpaint):
        # Made without being told, they would now reach for it, and fail.
        monkeypatch.setattr(module, "is_invisible_watermark_available", lambda: True)
    bench.engine._others.clear()

    for method in (Method.IMAGE_TO_IMAGE, Method.INPAINT):
        assert bench.make("sdxl", Canvas(noise(), None), method=method, strength=0.8).images
        assert bench.engine._others["sdxl", method].watermark is None


def test_progress_of_an_edit_counts_the_steps_that_are_made(bench: Bench):
    told: list[tuple[int, int]] = []
    spec = bench.spec("sd15", method=Method.IMAGE_TO_IMAGE, strength=0.5, steps=8)

    bench.engine.generate(spec, Canvas(noise(), None), lambda step, steps: told.append((step, steps)), unwatched)

    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)]
