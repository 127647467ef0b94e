"""Our own denoising loop on real classes with tiny weights: the pipeline's pictures, while runs come and go."""

import copy
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from PIL import Image

from common.images_api import Size
from node.engines.base import EngineFailed, OutOfDeviceMemory, PassTime, RunCancelled
from node.engines.families import calls_of
from node.models import Models
from node.pipeline_classes import Family, class_of
from tests.node.bench import Bench, pixels
from tests.node.stepping import Door, alone, four, opened
from tests.node.test_together import LEAST_DB, made, psnr_db, unstopped

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

NAMES = ("sd15", "sdxl", "z-image")
SAMPLERS = {
    "sd15": ("checkpoint", "euler", "euler-a", "dpmpp-2m-karras", "ddim", "lcm"),
    "sdxl": ("checkpoint", "euler-a", "dpmpp-2m-karras"),
    # The sampler of flow matching, which a request cannot choose another for.
    "z-image": ("checkpoint",),
}
WAYS = [(name, sampler) for name, samplers in SAMPLERS.items() for sampler in samplers]
NOT_FOR_SD15 = {"FlowMatchEulerDiscreteScheduler", "LMSDiscreteScheduler"}
"""The pipeline cannot be called with the first; the second needs a library that is no part of this."""
GUIDANCE = {"guided": 5.0, "unguided": 0.0}


@pytest.fixture(scope="module")
def bench(tiny_models: Models) -> Bench:
    return Bench(tiny_models)


@pytest.mark.parametrize("guidance", GUIDANCE.values(), ids=GUIDANCE)
@pytest.mark.parametrize(("name", "sampler"), WAYS)
def test_a_picture_alone_is_the_pipelines_to_the_bit(bench: Bench, name: str, sampler: str, guidance: float):
    spec = bench.spec(name, sampler=sampler, guidance=guidance, steps=5)

    door = opened(bench, Door({0: [spec]}))

    ours, theirs = made(door.outcomes[spec.prompt]), alone(bench, spec)
    assert pixels(ours) == pixels(theirs)
    assert (ours.sampler, ours.prompt_tokens, ours.batch) == (theirs.sampler, theirs.prompt_tokens, 1)
    assert door.told[spec.prompt][-1] == (5, 5)


@pytest.mark.parametrize("solver", sorted(class_of(Family.SD15).diffusers["scheduler"] - NOT_FOR_SD15))
def test_so_it_is_with_every_solver_that_a_checkpoint_may_name(bench: Bench, solver: str, monkeypatch: pytest.MonkeyPatch):
    _, pipeline = bench.engine._loaded["sd15"]
    monkeypatch.setattr(pipeline, "scheduler", getattr(diffusers, solver).from_config(pipeline.scheduler.config))
    spec = bench.spec("sd15", sampler="checkpoint", steps=5)

    door = opened(bench, Door({0: [spec]}))

    ours, theirs = made(door.outcomes[spec.prompt]), alone(bench, spec)
    assert pixels(ours) == pixels(theirs)
    assert ours.sampler == theirs.sampler == solver


@pytest.mark.parametrize("guidance", GUIDANCE.values(), ids=GUIDANCE)
@pytest.mark.parametrize(("name", "sampler"), WAYS)
def test_in_company_that_comes_and_goes_it_is_so_but_for_rounding(bench: Bench, name: str, sampler: str, guidance: float):
    specs = four(bench, name, sampler=sampler, guidance=guidance)

    door = opened(bench, Door({0: specs[:1], 2: specs[1:2], 3: specs[2:]}))

    ours = [made(door.outcomes[spec.prompt]) for spec in specs]
    assert [each.batch for each in ours] == [4] * 4
    theirs = [alone(bench, spec).images[0] for spec in specs]
    assert min(psnr_db(mine.images[0], its) for mine, its in zip(ours, theirs, strict=True)) >= LEAST_DB


@pytest.mark.parametrize("name", NAMES)
def test_members_may_differ_in_steps_sampler_and_guidance(bench: Bench, name: str):
    first, second, third, fourth = four(bench, name)
    mixed = [replace(first, guidance=0.0), replace(second, guidance=7.5), replace(third, guidance=3.0), fourth]
    if name == "sd15":
        mixed = [replace(spec, sampler=sampler) for spec, sampler in zip(mixed, SAMPLERS["sd15"][1:5], strict=True)]

    door = opened(bench, Door({0: mixed[:2], 1: mixed[2:]}))

    for spec in mixed:
        assert made(door.outcomes[spec.prompt]).batch == 4
        assert psnr_db(made(door.outcomes[spec.prompt]).images[0], alone(bench, spec).images[0]) >= LEAST_DB


def test_z_image_draws_different_sizes_in_one_pass(bench: Bench):
    sizes = (Size(64, 64), Size(96, 64), Size(64, 128), Size(112, 112))
    specs = [replace(spec, drawn=size, size=size) for spec, size in zip(four(bench, "z-image"), sizes, strict=True)]

    door = opened(bench, Door({0: specs[:2], 2: specs[2:]}))

    for spec in specs:
        assert made(door.outcomes[spec.prompt]).batch == 4
        assert psnr_db(made(door.outcomes[spec.prompt]).images[0], alone(bench, spec).images[0]) >= LEAST_DB


@pytest.mark.parametrize("kind", ["half precision", "channels with a mean of their own"])
def test_sdxl_latents_become_the_picture_that_the_pipeline_makes_of_them(bench: Bench, kind: str):
    _, pipeline = bench.engine._loaded["sdxl"]
    half = kind == "half precision"
    vae = copy.deepcopy(pipeline.vae).to(torch.float16 if half else torch.float32)
    if not half:
        vae.register_to_config(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.1, 0.9, 1.3, 1.0])
    own = StableDiffusionXLPipeline(**pipeline.components | {"vae": vae}, add_watermarker=False)
    latents = []

    def keep(pipeline: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        latents[:] = [values["latents"]]
        return values

    given: Any = {"width": 64, "height": 64, "num_inference_steps": 3, "generator": torch.Generator().manual_seed(1)}
    expected = own("a fox", **given, callback_on_step_end=keep).images[0]
    with torch.no_grad():
        picture = calls_of(Family.SDXL).decode(own, latents[0], bench.spec("sdxl"))

    assert picture.tobytes() == expected.tobytes()
    assert vae.dtype == (torch.float16 if half else torch.float32)


def test_who_is_done_leaves_while_the_others_go_on(bench: Bench):
    long, short, *_ = four(bench, "sd15")

    door = opened(bench, Door({0: [long], 2: [short]}))

    assert list(door.outcomes) == [short.prompt, long.prompt]
    assert (door.ended_at[short.prompt], door.ended_at[long.prompt]) == (6, 8)


def test_each_is_told_its_own_steps_and_shown_its_own_previews(bench: Bench):
    first, second, *_ = four(bench, "sd15", previews=1)
    second = replace(second, seeds=(2, 3))

    door = opened(bench, Door({0: [first], 2: [second]}))

    assert door.told[first.prompt] == [(n, 8) for n in range(1, 9)]
    assert door.told[second.prompt] == [(2 * n, 8) for n in range(1, 5)]
    for spec in (first, second):
        shown: list[Image.Image] = []
        bench.engine.generate(spec, None, unstopped, lambda index, image: shown.append(image))  # noqa: B023
        assert len(door.previews[spec.prompt]) == len(shown) == 1
        assert psnr_db(door.previews[spec.prompt][0], shown[0]) >= LEAST_DB


def test_there_are_never_more_at_work_than_there_is_room_for(bench: Bench):
    many = bench.spec("sd15", prompt="many", seeds=tuple(range(5)), steps=4)
    late = bench.spec("sd15", prompt="late", steps=4)

    door = opened(bench, Door({0: [many], 1: [late]}, batch=2))

    assert made(door.outcomes["many"]).batch == made(door.outcomes["late"]).batch == 2
    # A free place goes to whoever has the fewest.
    assert list(door.outcomes) == ["late", "many"]
    assert door.told["late"][:4] == [(0, 4), (0, 4), (0, 4), (1, 4)]
    assert pixels(made(door.outcomes["many"]))[0] != pixels(made(door.outcomes["many"]))[1]


@pytest.mark.parametrize("place", ["at work", "waiting"])
def test_one_that_is_cancelled_is_gone_before_the_next_step(bench: Bench, place: str):
    first, second, *_ = four(bench, "sd15")
    seen: list[int] = []

    def on_step(prompt: str, step: int) -> None:
        if prompt == second.prompt:
            seen.append(step)
            if len(seen) == 2:
                raise RunCancelled("enough")

    door = opened(bench, Door({0: [first, second]}, batch=1 if place == "waiting" else 2, on_step=on_step))

    assert isinstance(door.outcomes[second.prompt], RunCancelled)
    assert seen == ([0, 0] if place == "waiting" else [1, 2])
    assert door.ended_at[second.prompt] == 2
    assert psnr_db(made(door.outcomes[first.prompt]).images[0], alone(bench, first).images[0]) >= LEAST_DB


@pytest.mark.parametrize("name", NAMES)
def test_a_step_that_does_not_fit_the_memory_is_made_with_half_and_the_others_go_on_later(bench: Bench, name: str):
    specs = four(bench, name, guidance=0.0)
    module = bench.engine._loaded[name][1]
    denoiser = module.transformer if name == "z-image" else module.unet
    sizes: list[int] = []

    def only_pairs_fit(module: torch.nn.Module, given: tuple[Any, ...]) -> None:
        sizes.append(len(given[0]))
        if len(given[0]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = denoiser.register_forward_pre_hook(only_pairs_fit)
    try:
        door = opened(bench, Door({0: specs[:2], 3: specs[2:]}))
    finally:
        hook.remove()

    assert sizes.count(4) == 1
    outcomes = [made(door.outcomes[spec.prompt]) for spec in specs]
    assert [each.batch for each in outcomes] == [2] * 4
    assert PassTime(4, None) in [each for outcome in outcomes for each in outcome.passes]
    assert all(psnr_db(o.images[0], alone(bench, s).images[0]) >= LEAST_DB for o, s in zip(outcomes, specs, strict=True))


def test_where_not_even_one_picture_fits_each_is_told_so_and_the_next_is_fine(bench: Bench):
    specs = four(bench, "sd15")
    unet = bench.engine._loaded["sd15"][1].unet

    def nothing_fits(module: torch.nn.Module, given: tuple[Any, ...]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    hook = unet.register_forward_pre_hook(nothing_fits)
    try:
        door = opened(bench, Door({0: specs}))
    finally:
        hook.remove()

    assert [type(door.outcomes[spec.prompt]) for spec in specs] == [OutOfDeviceMemory] * 4
    assert bench.make("sd15").images


@pytest.mark.parametrize("where", ["its prompt", "its own step", "its part of the pass"])
def test_one_that_fails_does_not_take_the_others_with_it(bench: Bench, where: str):
    first, second, third, _ = four(bench, "sd15")
    parts = bench.engine._loaded["sd15"][1]
    bench.engine._prompts.forget("sd15")
    calls: list[int] = []

    def on_step(prompt: str, step: int) -> None:
        if where == "its own step" and prompt == second.prompt and step == 2:
            raise ValueError("a secret prompt in a message")

    def fail_reading(*given: object) -> None:
        calls.append(1)
        # Each run has two prompts; the third call is the second run's first.
        if where == "its prompt" and len(calls) == 3:
            raise ValueError("a secret prompt in a message")

    def fail_passing(module: torch.nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        marked = {float(each) for each in named["encoder_hidden_states"][:, 0, 0]}
        if where == "its part of the pass" and 9.0 in marked:
            raise ValueError("a secret prompt in a message")

    def mark(module: torch.nn.Module, given: Any, told: Any) -> None:
        """The second run's first embedding is told by a number."""
        if where == "its part of the pass" and len(calls) == 3:
            told[0][:, 0, 0] = 9.0

    hooks = [
        parts.text_encoder.register_forward_pre_hook(fail_reading),
        parts.text_encoder.register_forward_hook(mark),
        parts.unet.register_forward_pre_hook(fail_passing, with_kwargs=True),
    ]
    try:
        door = opened(bench, Door({0: [first], 2: [second, third]}, on_step=on_step))
    finally:
        for hook in hooks:
            hook.remove()
        bench.engine._prompts.forget("sd15")

    failed = door.outcomes[second.prompt]
    assert isinstance(failed, EngineFailed)
    assert "secret" not in failed.message
    for spec in (first, third):
        assert psnr_db(made(door.outcomes[spec.prompt]).images[0], alone(bench, spec).images[0]) >= LEAST_DB


def test_what_steps_took_is_told_as_whole_passes_and_everyones_own_share(bench: Bench):
    first, second, *_ = (replace(spec, steps=6) for spec in four(bench, "sd15"))

    door = opened(bench, Door({0: [first], 3: [second]}))

    outcomes = [made(door.outcomes[spec.prompt]) for spec in (first, second)]
    assert [sorted(each.pictures for each in outcome.passes) for outcome in outcomes] == [[1, 2], [1]]
    assert all(each.seconds for outcome in outcomes for each in outcome.passes)
    for outcome in outcomes:
        assert outcome.own_s is not None
        assert 0 < outcome.own_s < sum(outcome.timings_s.values())


def test_the_pipelines_own_sampler_is_left_alone(bench: Bench):
    _, pipeline = bench.engine._loaded["sd15"]
    sampler, before = pipeline.scheduler, pixels(bench.make("sd15"))

    opened(bench, Door({0: four(bench, "sd15", sampler="euler-a")}))

    assert pipeline.scheduler is sampler
    assert pixels(bench.make("sd15")) == before


def test_what_is_not_loaded_is_an_error(bench: Bench):
    with pytest.raises(EngineFailed, match="is not loaded"):
        opened(bench, Door({0: [replace(bench.spec("sd15"), model="other")]}))
