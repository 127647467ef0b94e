"""Every larger family on real classes with tiny weights: what is true of all of them, and what each one's fields do."""

from collections.abc import Collection, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from common.errors import AquatintError
from common.images_api import Size
from node.engines.base import EngineFailed, Made, Member, Method, RunCancelled
from node.masks import Canvas
from node.models import Models, find_models
from node.pipeline_classes import PipelineClass, class_of
from tests.node.bench import Bench, noise, pixels

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")

STARTING = ("flux.1-dev", "flux.1-schnell", "qwen-image", "sd3-medium")
"""Families that start from a noised picture."""
DRAWING = (*STARTING, "flux.1-kontext", "flux.2-klein-4b", "flux.2-klein-base-4b", "sana")
"""Families that need no picture."""
INPAINTING = (*STARTING, "flux.1-kontext", "flux.2-klein-4b")
SEVERAL = ("flux.2-klein-4b", "qwen-image-edit-plus")
"""Families that look at more than one picture and are told what to do with them."""
EDITING = ("flux.1-kontext", "qwen-image-edit", *SEVERAL)
GUIDED = ("flux.2-klein-base-4b", "qwen-image", "sana", "sd3-medium")
"""Families with classifier-free guidance under `guidance_scale`."""


@pytest.fixture(scope="module")
def bench(families: Path) -> Bench:
    return Bench(find_models([families]))


def table(models: Models, name: str) -> PipelineClass:
    return class_of(models.by_name[name].checkpoint.family)


def test_every_checkpoint_is_found_with_the_profile_of_its_name(bench: Bench):
    profiles = {model.name: model.profile.name for model in bench.models}

    assert profiles == {name: name for name in {*DRAWING, *EDITING}}
    assert not bench.models.refused


@pytest.mark.parametrize("name", DRAWING)
def test_the_same_seed_is_the_same_picture_alone_or_beside_others(bench: Bench, name: str):
    two = pixels(bench.make(name, seeds=(41, 42)))

    assert two == [pixels(bench.make(name, seeds=(seed,)))[0] for seed in (41, 42)]
    assert len(set(two)) == 2
    assert pixels(bench.make(name, prompt="a small blue square")) != two[:1]


@pytest.mark.parametrize("name", DRAWING)
def test_a_run_cancelled_at_a_step_leaves_the_pipeline_as_it_was(bench: Bench, name: str):
    before = pixels(bench.make(name))

    def stop(step: int, steps: int) -> None:
        if step == 2:
            raise RunCancelled("enough")

    with pytest.raises(RunCancelled, match="enough"):
        bench.engine.generate(bench.spec(name), None, stop, lambda index, image: None)

    assert pixels(bench.make(name)) == before


@pytest.mark.parametrize("name", DRAWING)
def test_previews_and_pictures_have_the_size_asked_for(bench: Bench, name: str):
    seen: list[Image.Image] = []
    drawn = Size(96, 64)

    made = bench.make(name, None, lambda index, image: seen.append(image), previews=1, drawn=drawn, size=Size(90, 60))

    assert [image.size for image in (*seen, *made.images)] == [(90, 60)] * 2


@pytest.mark.parametrize("name", DRAWING)
def test_the_preview_of_the_last_step_is_the_picture(bench: Bench, name: str):
    family = bench.models.by_name[name].checkpoint.family
    from node.engines.families import calls_of

    held: list[Image.Image] = []

    class Last:
        """Decodes what the sampler holds after each step, as previews do."""

        def __call__(self, pipeline, step, timestep, values):  # type: ignore[no-untyped-def]
            held.append(calls_of(family).decode(pipeline, values["latents"], spec))
            return {}

    spec = bench.spec(name, drawn=Size(96, 64), size=Size(96, 64))
    _, pipeline = bench.engine._loaded[name]
    calls = calls_of(family)
    with torch.no_grad():
        picture = pipeline(
            **calls.encode(pipeline, spec, None),
            **calls.start(spec, None),
            **calls.guidance(spec),
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(1),
            callback_on_step_end=Last(),
        ).images[0]

    assert held[-1].tobytes() == picture.tobytes()


@pytest.mark.parametrize("name", DRAWING)
def test_a_prompt_is_counted_and_its_truncation_told(bench: Bench, name: str):
    short, long = bench.make(name, prompt="abc", steps=1), bench.make(name, prompt="abc " * 400, steps=1)

    assert short.prompt_tokens in (3, 4)
    assert (short.prompt_truncated, long.prompt_truncated) == (False, True)


@pytest.mark.parametrize("name", STARTING)
def test_strength_is_how_far_a_picture_may_leave_its_start(bench: Bench, name: str):
    start = Canvas(noise(), None)
    same, changed = (
        bench.make(name, start, method=Method.IMAGE_TO_IMAGE, strength=strength, steps=4).images[0] for strength in (0.0, 0.5)
    )

    assert same.tobytes() == start.picture.tobytes()
    assert changed.tobytes() != start.picture.tobytes()


@pytest.mark.parametrize("name", INPAINTING)
def test_outside_a_mask_every_pixel_stays(bench: Bench, name: str):
    repaint = Image.new("L", (60, 52), 0)
    repaint.paste(255, (10, 10, 40, 40))
    start = Canvas(noise(60, 52), repaint)

    made = bench.make(name, start, method=Method.INPAINT, strength=1.0, steps=2, size=Size(60, 52)).images[0]

    assert made.tobytes() == Image.composite(made, start.picture, repaint).tobytes()
    assert made.tobytes() != start.picture.tobytes()


@pytest.mark.parametrize("name", STARTING)
def test_methods_share_one_set_of_weights(bench: Bench, name: str):
    bench.make(name, Canvas(noise(), None), method=Method.IMAGE_TO_IMAGE, strength=0.5)

    _, loaded = bench.engine._loaded[name]
    other = bench.engine._others[name, Method.IMAGE_TO_IMAGE]
    parts = [part for part, each in loaded.components.items() if isinstance(each, torch.nn.Module)]
    assert len(parts) >= 3
    assert all(getattr(other, part) is getattr(loaded, part) for part in parts)


@pytest.mark.parametrize("strength", [0.3, 0.5, 0.6, 0.9])
@pytest.mark.parametrize("name", STARTING)
def test_as_many_steps_are_made_of_an_edit_as_are_told(bench: Bench, name: str, strength: float):
    spec = bench.spec(name, method=Method.IMAGE_TO_IMAGE, strength=strength, steps=7, guidance=1.0)
    calls: list[int] = []
    hook = bench.engine._loaded[name][1].transformer.register_forward_hook(lambda *given: calls.append(1))
    try:
        bench.engine.generate(spec, Canvas(noise(), None), lambda step, steps: None, lambda index, image: None)
    finally:
        hook.remove()

    assert len(calls) == spec.forwards


def seen(*pictures: Image.Image) -> Canvas:
    return Canvas(pictures[0].resize((64, 64)), None, pictures)


@pytest.mark.parametrize("name", [name for name in EDITING if name != "qwen-image-edit-plus"])
def test_an_edit_hears_its_instruction_and_sees_its_picture(bench: Bench, name: str):
    start, other = seen(noise(96, 72)), seen(noise(96, 72))
    how: dict[str, Any] = {"method": Method.EDIT, "steps": 1, "guidance": 1.0}
    made = pixels(bench.make(name, start, **how))

    assert made != pixels(bench.make(name, start, **how | {"prompt": "make it blue"}))
    assert made != pixels(bench.make(name, other, **how))


@pytest.mark.parametrize("name", SEVERAL)
def test_the_sources_of_an_edit_have_an_order(bench: Bench, name: str):
    first, second = noise(96, 72), Image.new("RGB", (72, 96), "red")
    made, turned = (
        pixels(bench.make(name, seen(*pictures), method=Method.EDIT, steps=1, guidance=1.0))
        for pictures in ((first, second), (second, first))
    )

    assert made != turned


@pytest.mark.parametrize("name", SEVERAL)
def test_an_edit_by_instruction_keeps_what_lies_outside_its_mask(bench: Bench, name: str):
    repaint = Image.new("L", (64, 64), 0)
    repaint.paste(255, (10, 10, 40, 40))
    picture = noise()

    made = bench.make(name, Canvas(picture, repaint, (picture,)), method=Method.EDIT, steps=1, guidance=1.0).images[0]

    assert made.tobytes() == Image.composite(made, picture, repaint).tobytes()
    assert made.tobytes() != picture.tobytes()


def test_flux_dev_hears_its_guidance_and_schnell_does_not(bench: Bench):
    assert pixels(bench.make("flux.1-dev")) != pixels(bench.make("flux.1-dev", guidance=1.0))
    assert pixels(bench.make("flux.1-schnell")) == pixels(bench.make("flux.1-schnell", guidance=1.0))


def test_a_negative_prompt_of_flux_dev_needs_true_guidance(bench: Bench):
    plain = pixels(bench.make("flux.1-dev"))
    unwanted = pixels(bench.make("flux.1-dev", negative_prompt="square"))
    guided = pixels(bench.make("flux.1-dev", negative_prompt="square", true_cfg_scale=4.0))

    assert plain == unwanted
    assert guided != plain
    assert guided != pixels(bench.make("flux.1-dev", negative_prompt="hats", true_cfg_scale=4.0))


@pytest.mark.parametrize("name", GUIDED)
def test_a_negative_prompt_is_heard_with_guidance_and_only_then(bench: Bench, name: str):
    made = pixels(bench.make(name))

    assert made != pixels(bench.make(name, guidance=1.0))
    assert made != pixels(bench.make(name, negative_prompt="hats"))
    assert pixels(bench.make(name, guidance=1.0)) == pixels(bench.make(name, guidance=1.0, negative_prompt="x"))


def test_distilled_klein_has_no_guidance(bench: Bench):
    plain = pixels(bench.make("flux.2-klein-4b"))

    assert plain == pixels(bench.make("flux.2-klein-4b", guidance=4.0, negative_prompt="hats"))


def test_klein_repaints_more_than_a_megapixel_at_the_size_asked_for(bench: Bench):
    size = Size(1088, 1024)
    repaint = Image.new("L", (1088, 1024), 0)
    repaint.paste(255, (100, 100, 400, 400))
    start = Canvas(noise(1088, 1024), repaint)
    seen: list[Image.Image] = []
    how: dict[str, Any] = {"method": Method.INPAINT, "strength": 1.0, "steps": 2, "drawn": size, "size": size, "previews": 1}

    made = bench.make("flux.2-klein-4b", start, lambda index, image: seen.append(image), **how).images[0]

    assert [image.size for image in (made, *seen)] == [(1088, 1024)] * 2
    assert made.tobytes() == Image.composite(made, start.picture, repaint).tobytes()


def test_runs_of_a_family_without_a_loop_of_ours_cannot_come_and_go(bench: Bench):
    class Nobody:
        batch = 1

        def arrived(self) -> Sequence[Member]:
            return ()

        def wait(self, others: Collection[Future[Any]]) -> None:
            raise AssertionError(others)

        def ended(self, member: Member, outcome: Made | AquatintError) -> None:
            raise AssertionError(member)

    with pytest.raises(EngineFailed, match="come and go"):
        bench.engine.generate_in_steps(bench.spec("sana"), Nobody())
