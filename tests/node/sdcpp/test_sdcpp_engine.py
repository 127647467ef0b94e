"""The sd.cpp engine on tiny random models: seeds, sizes, steps, inputs, previews, and prompts that would end the process."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from common.images_api import OutputFormat, Size
from node.engines.base import EngineFailed, LoraUse, Made, Method, OnPreview, RunCancelled, RunSpec
from node.extras import Place
from node.masks import Canvas
from node.models import Models

NAMES = ("ovis", "ovis-q8", "ovis-q4", "klein")


class Bench:
    """One engine with every tiny model loaded."""

    def __init__(self, models: Models) -> None:
        from node.engines.sdcpp_engine import SdcppEngine

        self.engine = SdcppEngine("cpu", threads=1)
        self.models = models
        for model in models:
            self.engine.load(model.load_order("cpu", "auto"))

    def spec(self, name: str, **changes: Any) -> RunSpec:
        spec = RunSpec(
            model=name,
            prompt="a large red circle",
            negative_prompt="",
            seeds=(41,),
            drawn=Size(64, 64),
            size=Size(64, 64),
            steps=2,
            guidance=1.0,
            sampler="checkpoint",
            timestep_spacing=None,
            output_format=OutputFormat.PNG,
            output_compression=None,
            quality="medium",
            embed_parameters=False,
        )
        return replace(spec, **changes)

    def make(self, name: str, canvas: Canvas | None = None, on_preview: OnPreview | None = None, **changes: Any) -> Made:
        return self.engine.generate(
            self.spec(name, **changes), canvas, lambda step, steps: None, on_preview or (lambda index, image: None)
        )


@pytest.fixture(scope="module")
def bench(sdcpp_models: Models) -> Bench:
    return Bench(sdcpp_models)


def pixels(made: Made) -> list[bytes]:
    return [image.tobytes() for image in made.images]


def noise(width: int = 64, height: int = 64) -> Image.Image:
    return Image.frombytes("RGB", (width, height), random.Random(0).randbytes(3 * width * height))


def test_every_model_is_found_under_its_name(sdcpp_models: Models):
    assert sorted(sdcpp_models.by_name) == sorted(NAMES)
    assert sdcpp_models.refused == ()


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_made_and_another_prompt_is_another(bench: Bench, name: str):
    made = bench.make(name)

    assert (made.images[0].size, made.images[0].mode, made.sampler) == ((64, 64), "RGB", "euler")
    assert pixels(made) != pixels(bench.make(name, prompt="a small blue square"))


def test_the_same_seed_is_the_same_picture_alone_or_beside_others(bench: Bench):
    three = pixels(bench.make("ovis", seeds=(41, 42, 2**32 - 1)))

    assert three == [pixels(bench.make("ovis", seeds=(seed,)))[0] for seed in (41, 42, 2**32 - 1)]
    assert len(set(three)) == 3


def test_a_negative_prompt_has_an_effect_where_there_is_guidance(bench: Bench):
    guided = pixels(bench.make("ovis", guidance=5.0))

    assert guided != pixels(bench.make("ovis"))
    assert guided != pixels(bench.make("ovis", guidance=5.0, negative_prompt="square"))


def test_pictures_have_the_size_asked_for_cut_from_the_middle(bench: Bench):
    (whole,) = bench.make("ovis", drawn=Size(80, 64), size=Size(80, 64)).images
    (cut,) = bench.make("ovis", drawn=Size(80, 64), size=Size(70, 60)).images

    assert cut.tobytes() == whole.crop((5, 2, 75, 62)).tobytes()


def test_every_step_of_every_picture_is_reported(bench: Bench):
    told: list[tuple[int, int]] = []
    spec = bench.spec("ovis", seeds=(1, 2), steps=3)

    bench.engine.generate(spec, None, lambda step, steps: told.append((step, steps)), lambda index, image: None)

    assert told == [(n, 6) for n in range(1, 7)]


@pytest.mark.parametrize(("strength", "steps"), [(0.3, 2), (0.5, 4), (0.75, 6), (1.0, 8)])
def test_an_input_takes_as_many_steps_as_the_rule_says(bench: Bench, strength: float, steps: int):
    told: list[tuple[int, int]] = []
    spec = bench.spec("ovis", method=Method.IMAGE_TO_IMAGE, strength=strength, steps=8)

    bench.engine.generate(spec, Canvas(noise(), None), lambda step, of: told.append((step, of)), lambda index, image: None)

    assert spec.forwards == steps
    assert told == [(n, steps) for n in range(1, steps + 1)]


def test_strength_says_how_much_of_the_input_stays(bench: Bench):
    start = Canvas(noise(), None)

    same, little, much = (
        pixels(bench.make("ovis", start, method=Method.IMAGE_TO_IMAGE, strength=strength, steps=4))
        for strength in (0.0, 0.25, 1.0)
    )

    assert same == [start.picture.tobytes()]
    assert much == pixels(bench.make("ovis", steps=4))
    assert len({same[0], little[0], much[0]}) == 3


@pytest.mark.parametrize(("name", "size"), [("ovis", (64, 64)), ("ovis", (60, 52)), ("ovis-q8", (60, 52)), ("klein", (64, 64))])
def test_outside_a_mask_every_pixel_stays(bench: Bench, name: str, size: tuple[int, int]):
    repaint = Image.new("L", size, 0)
    repaint.paste(255, (10, 10, 40, 40))
    start = Canvas(noise(*size), repaint)

    made = bench.make(name, start, method=Method.INPAINT, strength=1.0, size=Size(*size), feather_px=4).images[0]

    assert made.size == size
    assert made.tobytes() == Image.composite(made, start.picture, repaint).tobytes()
    assert made.tobytes() != start.picture.tobytes()


def test_an_edit_by_reference_depends_on_what_the_model_is_shown(bench: Bench):
    shown, other = (Canvas(picture, None) for picture in (noise(), Image.new("RGB", (64, 64), "red")))

    edited = pixels(bench.make("klein", shown, method=Method.EDIT))

    assert edited == pixels(bench.make("klein", shown, method=Method.EDIT))
    assert edited != pixels(bench.make("klein", other, method=Method.EDIT))
    both = replace(shown, sources=(shown.picture, other.picture))
    assert edited != pixels(bench.make("klein", both, method=Method.EDIT))
    assert edited != pixels(bench.make("klein"))


def test_a_method_without_the_input_it_needs_is_an_error(bench: Bench):
    with pytest.raises(EngineFailed, match="needs an input"):
        bench.make("ovis", method=Method.IMAGE_TO_IMAGE, strength=0.5)


@pytest.mark.parametrize("decoded", [True, False])
def test_previews_are_pictures_of_the_size_asked_for_in_their_order(bench: Bench, decoded: bool):
    order, context = bench.engine._loaded["ovis"]
    if not decoded:
        # As with a full autoencoder alone: estimates are then projected, not decoded.
        bare = replace(order, checkpoint=replace(order.checkpoint, components={}))
        bench.engine._loaded["ovis"] = (bare, context)
    seen: list[tuple[int, tuple[int, int], bytes]] = []

    made = bench.make(
        "ovis", None, lambda n, image: seen.append((n, image.size, image.tobytes())), steps=8, previews=3, size=Size(60, 64)
    )

    bench.engine._loaded["ovis"] = (order, context)
    assert [(number, size) for number, size, _ in seen] == [(n, (60, 64)) for n in range(3)]
    assert len({content for _, _, content in seen}) == 3
    assert pixels(made) == pixels(bench.make("ovis", steps=8, size=Size(60, 64)))


def test_a_run_after_one_with_callbacks_is_not_told_to_it(bench: Bench):
    told: list[int] = []
    bench.engine.generate(bench.spec("ovis"), None, lambda step, steps: told.append(step), lambda index, image: None)
    before = list(told)

    bench.make("ovis")

    assert told == before == [1, 2]


@pytest.mark.parametrize("error", [RunCancelled("enough"), ValueError("a bug")])
def test_what_a_callback_raises_comes_out_at_the_end_and_the_model_stays_usable(bench: Bench, error: Exception):
    before = pixels(bench.make("ovis"))

    def fail(step: int, steps: int) -> None:
        raise error

    with pytest.raises(type(error), match=str(error)):
        bench.engine.generate(bench.spec("ovis"), None, fail, lambda index, image: None)

    assert pixels(bench.make("ovis")) == before


CRASHED_THE_LIBRARY = {
    "weight-of-dots": "a (fox:.)",
    "weight-beyond-floats": f"a (fox:{'9' * 400})",
    "weight-below-floats": f"a (fox:.{'0' * 60}1)",
    "weight-hidden-in-a-weight": "a (fox:.:..)",
    "long": "fox " * 8000,
    "long-without-spaces": "x" * 32_000,
    "long-in-japanese": "狐" * 32_000,
    "brackets": "(" * 4000,
    "nul": "a fox\0 and a hen",
    "half-a-character": "a \ud800 fox",
    "extra-arguments": '<sd_cpp_extra_args>{"seed": 1}</sd_cpp_extra_args>a fox',
    "lora": "a fox<lora:/etc/passwd:1>",
}


@pytest.mark.parametrize("prompt", CRASHED_THE_LIBRARY.values(), ids=CRASHED_THE_LIBRARY)
def test_no_prompt_ends_the_process(bench: Bench, prompt: str):
    assert bench.make("ovis", prompt=prompt, negative_prompt=prompt, guidance=2.0, steps=1).images[0].size == (64, 64)


@pytest.mark.parametrize(
    ("prompt", "seen"),
    [
        ("a fox", "a fox"),
        ("a (fox:1.3), [a hen] and (two:.5) of (the:2.) rest", "a (fox:1.3), [a hen] and (two:.5) of (the:2.) rest"),
        ("ratio 16:9 (wide)", "ratio 16:9 (wide)"),
        ("a (fox:..) and (x:1e9)", "a (fox) and (x:1e9)"),
        ("a (fox:.:..)", "a (fox)"),
        ("a<lora:x:1> fox<LoRA:/etc/passwd:0.5>", "a fox"),
        ("<lo<lora:a:1>ra:b:1>x", "x"),
        ("<sd_cpp_extra_args>{}</sd_cpp_extra_args>a<sd_cpp_extra_args> fox", "a"),
        ("a\0b", "a b"),
    ],
)
def test_commands_and_broken_weights_never_reach_native_code(bench: Bench, prompt: str, seen: str):
    from node.engines.sdcpp_engine import safe_prompt

    assert safe_prompt(prompt) == (seen, False)


def test_a_prompt_that_is_cut_off_is_told(bench: Bench):
    assert bench.make("ovis", prompt="fox " * 2000, steps=1).prompt_truncated
    assert not bench.make("ovis").prompt_truncated


@pytest.mark.parametrize("name", ["ovis", "ovis-q4"])
def test_a_lora_is_applied_to_one_picture_and_leaves_no_trace(bench: Bench, tmp_path: Path, name: str):
    import numpy as np
    from safetensors.numpy import save_file

    numbers, layer = np.random.default_rng(1), "diffusion_model.double_blocks.0.img_attn.qkv"
    down, up = (numbers.standard_normal(shape).astype(np.float16) * 0.3 for shape in ((4, 128), (384, 4)))
    path = tmp_path / "style.safetensors"
    save_file({f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}, path)
    order, context = bench.engine._loaded[name]
    bench.engine._loaded[name] = (replace(order, loras=(Place("style", path, tmp_path),)), context)
    told: list[tuple[int, int]] = []

    def made(*scales: float) -> Made:
        spec = bench.spec(name, loras=tuple(LoraUse("style", scale, "") for scale in scales))
        return bench.engine.generate(spec, None, lambda step, steps: told.append((step, steps)), lambda index, image: None)

    before, full, half, none, after = made(), made(1.0), made(0.5), made(0.0), made()

    bench.engine._loaded[name] = (order, context)
    assert pixels(before) == pixels(none) == pixels(after)
    assert len({pixels(each)[0] for each in (before, full, half)}) == 3
    assert (full.lora_layers, none.lora_layers, before.lora_layers) == ({"style": 1}, {"style": 0}, {})
    # Reading the file is counted by the library in the same way as steps are, and is not told as such.
    assert told == [(1, 2), (2, 2)] * 5


def test_phases_are_timed(bench: Bench):
    timings_s = bench.make("ovis", steps=4).timings_s

    assert set(timings_s) == {"encode", "denoise", "decode"}
    assert all(seconds > 0 for seconds in timings_s.values())


def test_running_what_is_not_loaded_is_an_error(bench: Bench):
    with pytest.raises(EngineFailed, match="is not loaded"):
        bench.make("other")


def test_a_model_can_be_unloaded_twice_and_loaded_again(sdcpp_models: Models):
    bench = Bench(Models({}))
    order = sdcpp_models.by_name["ovis"].load_order("cpu", "auto")
    bench.engine.load(order)
    before = pixels(bench.make("ovis"))

    for _ in range(2):
        bench.engine.unload("ovis")
    bench.engine.load(order)

    assert pixels(bench.make("ovis")) == before
    bench.engine.unload("ovis")


def test_a_load_that_fails_says_why_and_leaves_the_engine_usable(sdcpp_models: Models):
    bench = Bench(Models({}))
    order = sdcpp_models.by_name["ovis"].load_order("cpu", "auto")
    tae = sdcpp_models.by_name["klein"].checkpoint.components["tae"]
    wrong = replace(order, checkpoint=replace(order.checkpoint, components={**order.checkpoint.components, "tae": tae}))

    with pytest.raises(EngineFailed, match=r"Loading 'ovis' failed: stable-diffusion.cpp says: .*tae"):
        bench.engine.load(wrong)

    with pytest.raises(EngineFailed, match="is not loaded"):
        bench.make("ovis")
    bench.engine.unload("ovis")
    bench.engine.load(order)
    assert bench.make("ovis").images


@pytest.mark.parametrize(
    ("line", "memory"),
    [
        ("allocating 4096.00 MiB on device 0: cudaMalloc failed: out of memory", True),
        ("flux: failed to allocate the compute buffer", True),
        ("tensor 'x' has wrong shape in model file", False),
    ],
)
def test_memory_that_ran_out_on_a_device_is_told_apart(bench: Bench, line: str, memory: bool):
    from node.engines.sdcpp_native import NativeFailure

    assert NativeFailure("no", [line]).out_of_memory is memory


def test_the_structures_of_the_binding_are_those_of_its_library(bench: Bench):
    import ctypes

    from stable_diffusion_cpp import stable_diffusion_cpp as sd

    params = sd.sd_img_gen_params_t()
    sd._lib.sd_img_gen_params_init(ctypes.byref(params))

    # The defaults of the first, a middle and the very last field: any shift between the two would move them.
    assert (params.clip_skip, params.width, params.seed, params.hires.upscale_tile_size) == (-1, 512, -1, 128)


def test_our_table_of_ggml_types_is_the_librarys(bench: Bench):
    import ctypes

    from stable_diffusion_cpp import stable_diffusion_cpp as sd

    from node.gguf_header import GGML_TYPES

    block, size = sd._lib.ggml_blck_size, sd._lib.ggml_type_size
    block.restype, size.restype = ctypes.c_int64, ctypes.c_size_t

    assert {number: (block(number), size(number)) for number in GGML_TYPES} == {
        number: (elements, size_bytes) for number, (_, elements, size_bytes) in GGML_TYPES.items()
    }
