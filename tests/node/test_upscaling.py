"""Larger pictures through the engine: by a second pass, by a network, by both; steps, cancelling, and what stays as it was."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from common.images_api import Size
from node.engines.base import Method, RunCancelled, RunSpec, UpscaleUse
from node.masks import Canvas
from node.models import Models, find_models
from tests.checkpoints.upscalers import random_net, write_upscaler
from tests.node.bench import Bench, noise, pixels

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

NAMES = ("sd15", "z-image")


@pytest.fixture(scope="module")
def models(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:
    folder = tmp_path_factory.mktemp("models")
    write_upscaler(folder / "upscale_models" / "x4.safetensors", random_net())
    found = find_models([tiny, folder])
    return replace(found, by_name={name: found.by_name[name] for name in NAMES})


@pytest.fixture(scope="module")
def bench(models: Models) -> Bench:
    return Bench(models)


def latent(strength: float | None = 0.5, by: float = 1.5, side: int = 96) -> UpscaleUse:
    return UpscaleUse(by=by, method="latent", strength=strength, size=Size(side, side), drawn=Size(side, side))


def by_net(strength: float | None = None, side: int = 128) -> UpscaleUse:
    sha256 = hashlib.sha256(b"x4").hexdigest()
    return replace(latent(strength, side / 64, side), method="x4", sha256=sha256)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("use", [latent(), by_net(), by_net(0.5, 96), by_net(side=300)])
def test_the_picture_is_larger_repeats_and_the_plain_one_stays_as_it_was(bench: Bench, name: str, use: UpscaleUse):
    before = pixels(bench.make(name, steps=4))

    made = bench.make(name, steps=4, upscale=use)
    again = bench.make(name, steps=4, upscale=use)

    assert made.images[0].size == (use.size.width_px, use.size.height_px)
    assert pixels(made) == pixels(again)
    assert pixels(bench.make(name, steps=4)) == before


def test_the_second_pass_is_image_to_image_from_the_enlarged_picture(bench: Bench):
    plain = bench.make("sd15", steps=4).images[0]
    start = Canvas(plain.resize((96, 96), Image.Resampling.LANCZOS), None)
    large = Size(96, 96)

    by_hand = bench.make("sd15", start, method=Method.IMAGE_TO_IMAGE, strength=0.5, steps=4, size=large, drawn=large)

    assert pixels(bench.make("sd15", steps=4, upscale=latent())) == pixels(by_hand)
    only_larger = bench.make("sd15", steps=4, upscale=latent(None)).images[0]
    assert only_larger.tobytes() == start.picture.tobytes()


def test_of_several_each_is_as_it_is_alone_and_every_step_is_told_once(bench: Bench):
    told: list[tuple[int, int]] = []
    spec: RunSpec = bench.spec("sd15", steps=4, seeds=(41, 42), upscale=latent())

    both = pixels(bench.engine.generate(spec, None, lambda *step: told.append(step), lambda index, image: None))

    assert both == [pixels(bench.make("sd15", steps=4, seeds=(seed,), upscale=latent()))[0] for seed in (41, 42)]
    assert spec.total_steps == 2 * 4 + 2 * 2
    # Before each is made larger it is asked once more whether anyone still wants it.
    assert [step for step, total in told if total == 12] == sorted(step for step, _ in told)
    assert {step for step, _ in told} == set(range(1, 13))


@pytest.mark.parametrize("at", [2, 5])
def test_cancelling_in_either_pass_ends_at_the_step(bench: Bench, at: int):
    seen = []

    def stop(step: int, steps: int) -> None:
        seen.append(step)
        if step == at:
            raise RunCancelled("enough")

    before = pixels(bench.make("sd15", steps=4))
    with pytest.raises(RunCancelled):
        bench.engine.generate(bench.spec("sd15", steps=4, upscale=latent()), None, stop, lambda index, image: None)

    assert max(seen) == at
    assert pixels(bench.make("sd15", steps=4)) == before


def test_cancelling_while_a_network_works_ends_at_its_next_tile(bench: Bench):
    seen = []

    def stop(step: int, steps: int) -> None:
        seen.append(step)
        if seen.count(4) == 2:
            raise RunCancelled("enough")

    with pytest.raises(RunCancelled):
        bench.engine.generate(bench.spec("sd15", steps=4, upscale=by_net()), None, stop, lambda index, image: None)
    assert seen == [1, 2, 3, 4, 4]


def test_an_edit_is_enlarged_too(bench: Bench):
    edit: dict[str, Any] = {"method": Method.IMAGE_TO_IMAGE, "strength": 0.5, "steps": 4}

    assert bench.make("sd15", Canvas(noise(), None), upscale=latent(), **edit).images[0].size == (96, 96)


def test_a_spec_with_it_survives_the_way_to_the_worker(bench: Bench):
    spec: RunSpec = bench.spec("sd15", upscale=by_net(0.25))

    assert RunSpec.from_json(spec.to_json()) == spec
    assert (spec.final_size, replace(spec, upscale=None).final_size) == (Size(128, 128), Size(64, 64))
