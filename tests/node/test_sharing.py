"""Which runs share a pass, and that nobody is sent before all are there or gone."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import pytest

from common.images_api import ImageRequest, OutputFormat, Preprocess, Preset, Size, Task
from node.engines.base import ControlUse, ImagePromptUse, LoraUse, Method, RunSpec, UpscaleUse
from node.pipeline_classes import Family
from node.profile import profiles
from node.resolve import resolve
from node.sharing import STEPPED, Share, companions, shared_key, steps_key

CONTROL = ControlUse(
    name="edges",
    kind=None,
    scale=1.0,
    start=0.0,
    end=1.0,
    preprocess=Preprocess.CANNY,
    sha256="0" * 64,
    image_sha256="1" * 64,
)
UPSCALE = UpscaleUse(by=2.0, method="latent", strength=0.5, size=Size(1024, 1024), drawn=Size(1024, 1024))
IMAGE_PROMPT = ImagePromptUse(adapter="a", adapter_sha256="0" * 64, encoder="b", encoder_sha256="1" * 64)
FREE = {
    "prompt": "another",
    "negative_prompt": "another",
    "seeds": (1, 2, 3),
    "size": Size(504, 512),
    "output_format": OutputFormat.WEBP,
    "output_compression": 50,
    "quality": "high",
    "embed_parameters": False,
    "previews": 2,
}
"""Another value for each field that members of a pass may differ in."""
BOUND: dict[str, Any] = {
    "model": "another",
    "drawn": Size(64, 64),
    "steps": 3,
    "guidance": 1.5,
    "sampler": "lcm",
    "timestep_spacing": "trailing",
    "method": Method.IMAGE_TO_IMAGE,
    "strength": 0.5,
    "true_cfg_scale": 2.0,
    "feather_px": 3,
    "loras": (LoraUse("a", 1.0, "0" * 64),),
    "preset": Preset.FAST,
    "controls": (CONTROL,),
    "upscale": UPSCALE,
    "image_prompt": IMAGE_PROMPT,
}


@pytest.fixture
def spec() -> RunSpec:
    request = ImageRequest(task=Task.GENERATION, prompt="a fox", size=Size(512, 512), seed=1)
    return resolve(request, "sd15", profiles()["sd15"], embed_parameters=True).spec


@pytest.mark.parametrize("name", FREE)
def test_what_a_pass_keeps_apart_by_picture_may_differ(spec: RunSpec, name: str):
    assert shared_key(replace(spec, **{name: FREE[name]})) == shared_key(spec) is not None


@pytest.mark.parametrize("name", [field.name for field in fields(RunSpec) if field.name not in FREE])
def test_everything_else_must_be_equal(spec: RunSpec, name: str):
    assert shared_key(replace(spec, **{name: BOUND[name]})) != shared_key(spec)


@pytest.mark.parametrize(
    "change",
    [
        {"method": Method.IMAGE_TO_IMAGE},
        {"preset": Preset.FAST},
        {"controls": (CONTROL,)},
        {"upscale": UPSCALE},
        {"image_prompt": IMAGE_PROMPT},
    ],
)
def test_a_run_that_asks_for_more_than_a_picture_from_text_shares_with_nobody(spec: RunSpec, change: dict[str, Any]):
    assert shared_key(replace(spec, **change)) is None


BETWEEN_STEPS = FREE.keys() | {"steps", "guidance", "sampler", "timestep_spacing"}


@pytest.mark.parametrize(("family", "free"), [(Family.SD15, BETWEEN_STEPS), (Family.Z_IMAGE, BETWEEN_STEPS | {"drawn"})])
def test_between_steps_runs_may_differ_in_all_that_belongs_to_one_picture(spec: RunSpec, family: Family, free: set[str]):
    values = FREE | BOUND
    same = {
        field.name
        for field in fields(RunSpec)
        if steps_key(replace(spec, **{field.name: values[field.name]}), family) == steps_key(spec, family)
    }

    assert same == free


def test_only_families_with_a_loop_of_ours_share_steps_and_nobody_with_loras(spec: RunSpec):
    from node.engines.stepping.families import steps_of

    class Pipeline:
        _execution_device = "cpu"

    assert {family for family in Family if steps_key(spec, family) is not None} == set(STEPPED)
    assert {family for family in Family if steps_of(family, Pipeline()) is not None} == set(STEPPED)
    assert steps_key(replace(spec, loras=BOUND["loras"]), Family.SD15) is None


def test_who_is_to_be_exact_joins_others_like_it_alone(spec: RunSpec):
    key = steps_key(spec, Family.SD15, exact=True)

    another = replace(spec, prompt="another", steps=7, drawn=Size(128, 64), size=Size(120, 64))
    assert key == steps_key(another, Family.SD15, exact=True) is not None
    assert key != steps_key(spec, Family.SD15)


class Sent:
    """What was sent: the numbers, and the size of a pass."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[int], int]] = []

    def __call__(self, numbers: Sequence[int], batch: int) -> None:
        self.calls.append((list(numbers), batch))


def test_runs_are_sent_when_the_last_of_them_is_there():
    sent = Sent()
    share = Share({"a": 1, "b": 2}, 4)

    share.arrive("b", 7, sent)
    assert sent.calls == []
    share.arrive("a", 8, sent)

    assert sent.calls == [([7, 8], 3)]
    assert (share.runs, share.pictures) == (2, 3)


def test_one_that_leaves_before_it_is_there_holds_up_nobody():
    sent = Sent()
    share = Share({"a": 1, "b": 1}, 2)
    share.arrive("a", 7, sent)

    share.leave("b")

    assert sent.calls == [([7], 1)]


def test_one_that_leaves_while_it_waits_is_not_sent():
    sent = Sent()
    share = Share({"a": 1, "b": 1}, 2)
    share.arrive("a", 7, sent)

    share.leave("a")
    share.arrive("b", 8, sent)

    assert sent.calls == [([8], 1)]


def test_who_leaves_after_all_are_sent_is_only_not_counted_any_more():
    sent = Sent()
    share = Share({"a": 1, "b": 1}, 2)
    share.arrive("a", 7, sent)
    share.arrive("b", 8, sent)

    share.leave("a")
    share.leave("a")

    assert sent.calls == [([7, 8], 2)]
    assert (share.runs, share.pictures) == (1, 2)


def test_who_joins_is_sent_when_it_is_there_and_makes_room_for_itself():
    sent = Sent()
    share = Share({"a": 1}, 1)
    share.arrive("a", 7, sent)

    share.join("b", 2, 3)
    share.join("c", 1, 4)
    share.arrive("b", 8, sent)
    share.leave("c")

    assert sent.calls == [([7], 1), ([8], 3)]
    assert (share.runs, share.pictures) == (2, 3)
    assert share.number != Share({"a": 1}, 1).number


def test_a_pass_is_filled_with_those_that_fit_in_the_order_of_their_turns():
    assert companions([("a", 1), ("b", 2), ("c", 4), ("d", 1)], 4) == ["a", "b", "d"]
    assert companions([("a", 10), ("b", 1)], 4) == ["a"]
    assert companions([("a", 1), ("b", 1)], 1) == ["a"]
