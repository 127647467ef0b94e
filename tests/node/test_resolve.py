"""A request and a profile -> a spec: defaults, limits, and what had no effect."""

import json
from typing import Any

import pytest

from common.errors import InvalidRequest, UserImageError
from common.images_api import ImageRequest, OutputFormat, Quality, Size, Style, Task
from node.engines.base import RunSpec
from node.profile import profiles
from node.resolve import Resolved, resolve


def ask(profile: str, **fields: Any) -> Resolved:
    request = ImageRequest(**{"task": Task.GENERATION, "prompt": "a fox", "seed": 41} | fields)
    return resolve(request, "model", profiles()[profile], embed_parameters=False)


def test_what_the_client_leaves_open_comes_from_the_profile():
    spec = ask("sd15").spec

    assert (spec.size, spec.drawn, spec.steps, spec.guidance) == (Size(512, 512), Size(512, 512), 25, 7.5)
    assert (spec.seeds, spec.sampler, spec.quality, spec.negative_prompt) == ((41,), "euler", "medium", "")


def test_image_i_is_made_from_seed_plus_i():
    assert ask("sd15", n=3).spec.seeds == (41, 42, 43)


def test_a_missing_seed_is_drawn_and_told():
    first, second = ask("sd15", seed=None).spec.seeds[0], ask("sd15", seed=None).spec.seeds[0]

    assert first != second


@pytest.mark.parametrize(
    ("profile", "quality", "steps", "told"),
    [
        ("sd15", Quality.LOW, 15, "low"),
        ("sd15", Quality.HIGH, 35, "high"),
        ("sdxl-turbo", Quality.AUTO, 4, "high"),
        ("sdxl-turbo", Quality.LOW, 1, "low"),
        ("sdxl-turbo", Quality.HIGH, 4, "high"),
        ("z-image-turbo", Quality.MAX, 10, "max"),
        ("aquatint-demo", Quality.AUTO, 20, "medium"),
    ],
)
def test_quality_is_steps(profile: str, quality: Quality, steps: int, told: str):
    resolved = ask(profile, quality=quality)

    assert (resolved.spec.steps, resolved.spec.quality) == (steps, told)
    assert resolved.ignored == ()


@pytest.mark.parametrize(("steps", "told"), [(1, "low"), (15, "low"), (25, "medium"), (44, "high"), (150, "max")])
def test_given_steps_win_and_the_quality_told_is_the_one_reached(steps: int, told: str):
    spec = ask("sd15", num_inference_steps=steps).spec

    assert (spec.steps, spec.quality) == (steps, told)


@pytest.mark.parametrize(
    ("profile", "style", "guidance", "ignored"),
    [
        ("sd15", Style.VIVID, 7.5, ()),
        ("sd15", Style.NATURAL, 5.0, ()),
        ("animagine-xl-3.1", Style.NATURAL, 5.0, ()),
        ("sdxl-turbo", Style.NATURAL, 0, ("style",)),
        ("z-image-turbo", Style.VIVID, 0, ("style",)),
    ],
)
def test_style_is_guidance_where_there_is_any(profile: str, style: Style, guidance: float, ignored: tuple[str, ...]):
    resolved = ask(profile, style=style)

    assert (resolved.spec.guidance, resolved.ignored) == (guidance, ignored)


@pytest.mark.parametrize(
    ("profile", "fields", "ignored"),
    [
        ("sdxl-turbo", {"negative_prompt": "bad"}, ("negative_prompt",)),
        ("sd15", {"negative_prompt": "bad"}, ()),
        ("sd15", {"negative_prompt": "bad", "guidance_scale": 1.0}, ("negative_prompt",)),
        ("z-image-turbo", {"guidance_scale": 7.0}, ("guidance_scale",)),
        ("sd15", {"true_cfg_scale": 4.0}, ("true_cfg_scale",)),
        ("flux.1-dev", {"true_cfg_scale": 4.0, "negative_prompt": "bad"}, ()),
        ("flux.1-dev", {"true_cfg_scale": 1.0, "negative_prompt": "bad"}, ("negative_prompt",)),
        ("flux.1-dev", {"guidance_scale": 4.0, "negative_prompt": "bad"}, ("negative_prompt",)),
        ("qwen-image", {"true_cfg_scale": 2.0, "negative_prompt": "bad"}, ()),
        ("qwen-image", {"true_cfg_scale": 2.0, "guidance_scale": 3.0}, ("guidance_scale",)),
        ("flux.2-klein-4b", {"guidance_scale": 3.0, "negative_prompt": "bad"}, ("negative_prompt", "guidance_scale")),
        ("flux.1-schnell", {"guidance_scale": 4.0, "true_cfg_scale": 4.0}, ("guidance_scale", "true_cfg_scale")),
        ("sd15", {"style": Style.NATURAL, "guidance_scale": 9.0}, ("style",)),
        ("sd15", {"quality": Quality.HIGH, "num_inference_steps": 9}, ("quality",)),
        ("sd15", {"output_compression": 50}, ("output_compression",)),
        ("sd15", {"output_compression": 50, "output_format": OutputFormat.WEBP}, ()),
        ("sd15", {"ignored": ("size_width",)}, ("size_width",)),
    ],
)
def test_what_had_no_effect_is_told_by_name(profile: str, fields: dict[str, Any], ignored: tuple[str, ...]):
    assert ask(profile, **fields).ignored == ignored


def test_a_default_negative_prompt_yields_to_the_clients_even_when_that_is_empty():
    assert "worst quality" in ask("animagine-xl-3.1").spec.negative_prompt
    assert ask("animagine-xl-3.1", negative_prompt="hats").spec.negative_prompt == "hats"
    assert ask("animagine-xl-3.1", negative_prompt="").spec.negative_prompt == ""


@pytest.mark.parametrize(
    ("profile", "size", "drawn"),
    [
        ("sd15", Size(100, 70), Size(104, 72)),
        ("sd15", Size(1792, 1024), Size(1792, 1024)),
        ("z-image-turbo", Size(1280, 670), Size(1280, 672)),
        ("sdxl", Size(1536, 1024), Size(1536, 1024)),
    ],
)
def test_any_size_is_drawn_at_the_next_legal_multiple(profile: str, size: Size, drawn: Size):
    spec = ask(profile, size=size).spec

    assert (spec.size, spec.drawn) == (size, drawn)


@pytest.mark.parametrize(
    ("profile", "fields", "param", "rule"),
    [
        ("sd15", {"size": Size(63, 64)}, "size", "Width must be 64 to 2048 pixels"),
        ("sd15", {"size": Size(64, 4096)}, "size", "Height must be 64 to 2048 pixels"),
        ("sd15", {"size": Size(2048, 2048)}, "size", "above this model's limit of 1,835,008"),
        ("aquatint-demo", {"size": Size(1800, 64)}, "size", "64 to 1792"),
        ("sdxl-turbo", {"num_inference_steps": 5}, "num_inference_steps", "takes 1 to 4, but got 5"),
        ("z-image-turbo", {"num_inference_steps": 2}, "num_inference_steps", "takes 4 to 16, but got 2"),
        ("sd15", {"guidance_scale": 31.0}, "guidance_scale", "takes 0 to 30, but got 31"),
        ("sd15", {"n": 11}, "n", "<= 10, but got 11"),
        ("flux.1-dev", {"true_cfg_scale": 31.0}, "true_cfg_scale", "takes 0 to 30, but got 31"),
        ("flux.1-dev", {"sampler": "euler"}, "sampler", "this model has 'checkpoint'"),
    ],
)
def test_beyond_a_limit_is_an_error_that_gives_the_rule(profile: str, fields: dict[str, Any], param: str, rule: str):
    with pytest.raises(InvalidRequest, match=rule) as refused:
        ask(profile, **fields)

    assert refused.value.param == param
    assert isinstance(refused.value, UserImageError) == (param == "size")


def test_a_prompt_with_braces_is_a_prompt():
    assert ask("sd15", prompt="{prompt} {0} {x!r}").spec.prompt == "{prompt} {0} {x!r}"


@pytest.mark.parametrize(
    ("profile", "fields", "guidance", "true_cfg_scale"),
    [
        ("qwen-image", {}, 4.0, None),
        ("qwen-image", {"guidance_scale": 3.0}, 3.0, None),
        ("qwen-image", {"guidance_scale": 3.0, "true_cfg_scale": 2.0}, 2.0, None),
        ("flux.1-dev", {"guidance_scale": 3.0, "true_cfg_scale": 2.0}, 3.0, 2.0),
        ("sd15", {"guidance_scale": 3.0, "true_cfg_scale": 2.0}, 3.0, None),
    ],
)
def test_each_family_has_its_own_names_for_guidance(
    profile: str, fields: dict[str, Any], guidance: float, true_cfg_scale: float | None
):
    spec = ask(profile, **fields).spec

    assert (spec.guidance, spec.true_cfg_scale) == (guidance, true_cfg_scale)


def test_a_spec_survives_the_way_to_the_worker():
    spec = ask("animagine-xl-3.1", n=2, size=Size(100, 70), output_format=OutputFormat.WEBP, output_compression=7).spec

    assert RunSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_weights_reach_models_that_read_them_and_elsewhere_are_told_to_have_had_no_effect():
    fields = {"prompt": "a (large:1.3) fox (red)", "negative_prompt": "(blur:1.2)"}
    read, language = ask("sd15", **fields), ask("z-image-turbo", **fields)

    assert (read.spec.prompt, read.spec.negative_prompt) == (fields["prompt"], fields["negative_prompt"])
    assert read.ignored == ()
    assert language.spec.prompt == "a large fox (red)"
    assert language.ignored == ("negative_prompt", "prompt_weights")


def test_weights_nobody_can_mean_are_refused_before_anything_is_queued():
    with pytest.raises(InvalidRequest) as told:
        ask("sdxl", prompt="((fox:5):5)")

    assert told.value.param == "prompt"
