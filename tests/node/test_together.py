"""Passes of several runs on real classes with tiny weights: equal but for rounding, and no run pays for another."""

import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops, ImageStat

from common.errors import AquatintError
from common.images_api import Size
from node.engines.base import EngineFailed, Made, Member, OutOfDeviceMemory, PassTime, RunCancelled, RunSpec
from node.models import Models, find_models
from tests.node.bench import Bench, pixels
from tests.node.test_families import DRAWING
from tests.node.test_out_of_memory import memory_runs_out

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

NAMES = ("sd15", "sdxl", "sdxl-turbo", "z-image")
DENOISERS = {"sd15": "unet", "sdxl": "unet", "sdxl-turbo": "unet", "z-image": "transformer"}
LEAST_DB = 45.0
PROMPTS = ("a large red circle", "a small blue square on the left", "x", "two green triangles, one above the other")


@pytest.fixture(scope="module")
def bench(tiny_models: Models) -> Bench:
    return Bench(tiny_models)


@pytest.fixture(scope="module")
def larger(families: Path) -> Bench:
    return Bench(find_models([families]))


def unstopped(step: int, steps: int) -> None:
    """Goes on."""


def member(
    spec: RunSpec, on_step: Callable[[int, int], None] = unstopped, on_preview: Any = lambda index, image: None
) -> Member:
    return Member(spec, on_step, on_preview)


def specs(bench: Bench, name: str, **changes: Any) -> list[RunSpec]:
    """Four runs that differ in everything that members may."""
    return [bench.spec(name, prompt=prompt, seeds=(seed,), **changes) for seed, prompt in enumerate(PROMPTS)]


def together(bench: Bench, members: Sequence[Member], batch: int = 4) -> Sequence[Made | AquatintError]:
    return bench.engine.generate_together(members, batch)


def pictures(outcomes: Sequence[Made | AquatintError]) -> list[Image.Image]:
    return [image for outcome in outcomes for image in made(outcome).images]


def made(outcome: Made | AquatintError) -> Made:
    assert isinstance(outcome, Made), outcome
    return outcome


def psnr_db(left: Image.Image, right: Image.Image) -> float:
    mean_square = sum(ImageStat.Stat(ImageChops.difference(left, right)).sum2) / (3 * left.width * left.height)
    return math.inf if mean_square == 0 else 10 * math.log10(255**2 / mean_square)


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_in_a_pass_of_four_is_the_one_made_alone_but_for_rounding(bench: Bench, name: str):
    outcomes = together(bench, [member(spec) for spec in specs(bench, name)])

    alone = [bench.engine.generate(spec, None, unstopped, lambda i, p: None).images[0] for spec in specs(bench, name)]
    assert [made(outcome).batch for outcome in outcomes] == [4] * 4
    assert min(map(psnr_db, pictures(outcomes), alone)) >= LEAST_DB
    assert len({picture.tobytes() for picture in alone}) == 4


@pytest.mark.parametrize("name", DRAWING)
def test_so_it_is_with_every_family_that_draws(larger: Bench, name: str):
    outcomes = together(larger, [member(spec) for spec in specs(larger, name)])

    alone = [larger.engine.generate(spec, None, unstopped, lambda i, p: None).images[0] for spec in specs(larger, name)]
    assert max(made(outcome).batch for outcome in outcomes) > 1
    assert min(map(psnr_db, pictures(outcomes), alone)) >= LEAST_DB


@pytest.mark.parametrize("sampler", ["euler", "euler-a", "dpmpp-2m-karras", "ddim", "lcm"])
def test_every_picture_has_noise_of_its_own_at_every_step(bench: Bench, sampler: str):
    outcomes = together(bench, [member(spec) for spec in specs(bench, "sd15", sampler=sampler, steps=4)])

    alone = [
        bench.engine.generate(s, None, unstopped, lambda i, p: None).images[0]
        for s in specs(bench, "sd15", sampler=sampler, steps=4)
    ]
    assert min(map(psnr_db, pictures(outcomes), alone)) >= LEAST_DB


def test_the_pictures_of_one_run_share_passes_of_powers_of_two(bench: Bench):
    (outcome,) = together(bench, [member(bench.spec("sd15", seeds=tuple(range(7))))])

    run = made(outcome)
    assert [each.pictures for each in run.passes] == [4, 2, 1]
    assert all(each.seconds for each in run.passes)
    alone = bench.make("sd15", seeds=tuple(range(7))).images
    assert min(map(psnr_db, run.images, alone)) >= LEAST_DB


def test_prompts_of_different_length_are_not_padded_to_one_another(bench: Bench):
    long = bench.spec("sd15", prompt="abc " * 60)
    outcomes = together(bench, [member(spec) for spec in (bench.spec("sd15"), long, replace(long, seeds=(5,)))])

    assert [made(outcome).batch for outcome in outcomes] == [1, 2, 2]
    assert pixels(made(outcomes[0])) == pixels(bench.make("sd15"))


def test_members_are_cut_to_the_size_each_asked_for(bench: Bench):
    wanted = [Size(64, 64), Size(60, 52)]

    outcomes = together(bench, [member(bench.spec("sd15", size=size)) for size in wanted])

    assert [picture.size for picture in pictures(outcomes)] == [(64, 64), (60, 52)]


def test_each_is_told_its_own_steps_and_shown_its_own_previews(bench: Bench):
    told: list[list[tuple[int, int]]] = [[], []]
    shown: list[list[Image.Image]] = [[], []]

    def watching(number: int, seeds: tuple[int, ...]) -> Member:
        spec = bench.spec("sd15", seeds=seeds, steps=4, previews=1)
        return Member(
            spec, lambda step, steps: told[number].append((step, steps)), lambda i, image: shown[number].append(image)
        )

    together(bench, [watching(0, (1,)), watching(1, (2, 3))], batch=4)

    # Three pictures: a pass of two, then one alone.
    assert told[0] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert told[1] == [(n, 8) for n in range(1, 9)]
    alone: list[Image.Image] = []
    bench.make("sd15", None, lambda i, image: alone.append(image), seeds=(2,), steps=4, previews=1)
    assert [len(each) for each in shown] == [1, 1]
    assert psnr_db(shown[1][0], alone[0]) >= LEAST_DB


def stop_at(step: int) -> Callable[[int, int], None]:
    def on_step(done: int, steps: int) -> None:
        if done == step:
            raise RunCancelled("enough")

    return on_step


def test_one_that_is_cancelled_drops_out_and_the_others_get_their_pictures(bench: Bench):
    first, second, third, _ = specs(bench, "sd15")

    outcomes = together(bench, [member(first), member(second, stop_at(2)), member(third)])

    assert isinstance(outcomes[1], RunCancelled)
    assert [made(outcomes[n]).images[0].size for n in (0, 2)] == [(64, 64)] * 2


def test_a_pass_that_nobody_wants_any_more_stops_at_the_next_step(bench: Bench):
    steps: list[int] = []

    def counting(step: int, of: int) -> None:
        steps.append(step)
        stop_at(2)(step, of)

    outcomes = together(bench, [member(bench.spec("sd15", steps=10), counting) for _ in range(2)])

    assert [type(outcome) for outcome in outcomes] == [RunCancelled] * 2
    assert steps == [1, 1, 2, 2]
    assert bench.make("sd15").images


@pytest.mark.parametrize("name", NAMES)
def test_a_pass_that_does_not_fit_the_memory_is_made_in_halves(bench: Bench, name: str):
    sizes: list[int] = []
    denoiser = getattr(bench.engine._loaded[name][1], DENOISERS[name])

    def only_pairs_fit(module: torch.nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        rows = len(given[0]) if given else len(named["sample"])
        sizes.append(rows)
        # A guided picture is two rows.
        if rows > (4 if bench.spec(name).guidance > 1 else 2):
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = denoiser.register_forward_pre_hook(only_pairs_fit, with_kwargs=True)
    try:
        outcomes = together(bench, [member(spec) for spec in specs(bench, name)])
    finally:
        hook.remove()

    assert [made(outcome).batch for outcome in outcomes] == [2] * 4
    assert not any(made(outcome).vae_tiled for outcome in outcomes)
    assert made(outcomes[0]).passes[0] == PassTime(4, None)
    assert sorted(each.pictures for outcome in outcomes for each in made(outcome).passes) == [2, 2, 4]


def test_what_a_pass_held_that_did_not_fit_is_gone_before_its_halves_are_tried(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    held: list[weakref.ref[torch.Tensor]] = []
    left_over: list[bool] = []
    free = bench.engine.free_caches

    def freed() -> None:
        left_over.extend(ref() is not None for ref in held)
        free()

    def full(module: torch.nn.Module, given: tuple[Any, ...]) -> None:
        if not held:
            held.append(weakref.ref(given[0]))
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(bench.engine, "free_caches", freed)
    hook = bench.engine._loaded["sd15"][1].unet.register_forward_pre_hook(full)
    try:
        outcomes = together(bench, [member(spec) for spec in specs(bench, "sd15")[:2]])
    finally:
        hook.remove()

    assert [made(outcome).batch for outcome in outcomes] == [1, 1]
    assert left_over == [False]


def test_where_not_even_one_picture_fits_each_is_told_so(bench: Bench):
    with memory_runs_out(bench, "sd15", "unet", lambda call: True):
        outcomes = together(bench, [member(spec) for spec in specs(bench, "sd15")])

    assert [type(outcome) for outcome in outcomes] == [OutOfDeviceMemory] * 4
    assert bench.make("sd15").images


def test_a_run_whose_prompt_cannot_be_encoded_fails_alone(bench: Bench):
    first, second, third, _ = specs(bench, "sd15")
    bench.engine._prompts.forget("sd15")
    encoder = bench.engine._loaded["sd15"][1].text_encoder
    calls: list[int] = []

    def fail(*given: object) -> None:
        calls.append(1)
        # Each run has two prompts; the third call is the second run's first.
        if len(calls) == 3:
            raise ValueError("a secret prompt in a message")

    hook = encoder.register_forward_pre_hook(fail)
    try:
        outcomes = together(bench, [member(first), member(second), member(third)])
    finally:
        hook.remove()

    assert isinstance(outcomes[1], EngineFailed)
    assert "secret" not in outcomes[1].message
    assert [made(outcomes[n]).batch for n in (0, 2)] == [2, 2]


def test_of_a_pass_that_fails_only_the_run_at_fault_fails(bench: Bench):
    first, second, third, _ = specs(bench, "sd15")

    def fail(step: int, steps: int) -> None:
        raise ValueError("a fault of this run")

    outcomes = together(bench, [member(first), member(second, fail), member(third)])

    assert isinstance(outcomes[1], EngineFailed)
    assert [pixels(made(outcomes[n])) for n in (0, 2)] == [
        pixels(bench.engine.generate(spec, None, unstopped, lambda i, p: None)) for spec in (first, third)
    ]


def test_the_sampler_and_the_decoding_are_afterwards_what_they_were(bench: Bench):
    _, pipeline = bench.engine._loaded["sd15"]
    sampler, before = pipeline.scheduler, pixels(bench.make("sd15"))

    together(bench, [member(spec) for spec in specs(bench, "sd15", sampler="euler-a")])

    assert pipeline.scheduler is sampler
    assert not pipeline.vae.use_slicing
    assert pixels(bench.make("sd15")) == before


def test_what_is_not_loaded_is_an_error(bench: Bench):
    with pytest.raises(EngineFailed, match="is not loaded"):
        together(bench, [member(replace(bench.spec("sd15"), model="other"))])
