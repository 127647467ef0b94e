"""What each model family wants, and how a checkpoint comes by its profile."""

import pytest
from pydantic import ValidationError

from common.images_api import Quality, Size
from node.pipeline_classes import Family
from node.profile import Profile, Sidecar, choose_profile, profiles
from node.traits import Traits

SD_CLASS = ["animagine-xl-3.1", "aquatint-demo", "sd15", "sdxl"]
DISTILLED = ["flux.1-schnell", "sdxl-turbo", "z-image-turbo"]
TAUGHT = ["flux.1-dev", "qwen-image", "qwen-image-edit", "qwen-image-edit-plus"]
"""Models with guidance of their own kind, where style has no number."""


def test_every_shipped_profile_is_valid_and_none_is_missing():
    assert sorted(profiles()) == sorted(SD_CLASS + DISTILLED + TAUGHT)


@pytest.mark.parametrize("name", SD_CLASS)
def test_high_quality_is_at_least_thirty_steps_where_steps_buy_quality(name: str):
    assert profiles()[name].quality_steps[Quality.HIGH] >= 30
    natural = profiles()[name].natural_guidance
    assert natural is not None
    assert natural <= 5.0


@pytest.mark.parametrize("name", DISTILLED)
def test_distilled_models_have_fixed_guidance_and_no_styles(name: str):
    profile = profiles()[name]

    assert (profile.default_guidance, profile.takes_guidance, profile.natural_guidance) == (0, False, None)


@pytest.mark.parametrize("name", SD_CLASS + DISTILLED + TAUGHT)
def test_better_quality_never_takes_fewer_steps(name: str):
    steps = [profiles()[name].quality_steps[quality] for quality in Quality if quality is not Quality.AUTO]

    assert steps == sorted(steps)


def test_the_numbers_of_the_model_cards():
    turbo, animagine, z_image = (profiles()[n] for n in ("sdxl-turbo", "animagine-xl-3.1", "z-image-turbo"))

    assert (turbo.min_steps, turbo.max_steps, turbo.timestep_spacing) == (1, 4, "trailing")
    assert (turbo.default_size, turbo.commercial_use) == (Size(512, 512), False)
    assert (animagine.default_steps, animagine.default_guidance, animagine.sampler) == (28, 7.0, "euler-a")
    assert animagine.rendered("1girl {solo}") == "1girl {solo}, masterpiece, best quality, very aesthetic, absurdres"
    assert (z_image.default_steps, z_image.default_size, z_image.size_step_px) == (8, Size(1024, 1024), 16)
    assert set(z_image.dtype.values()) == {"bfloat16"}


@pytest.mark.parametrize(
    ("name", "steps", "guidance", "size", "step_px", "commercial_use"),
    [
        ("flux.1-dev", 28, 3.5, "1024x1024", 16, False),
        ("flux.1-schnell", 4, 0, "1024x1024", 16, True),
        ("qwen-image", 50, 4.0, "1328x1328", 16, True),
        ("qwen-image-edit", 50, 4.0, "1024x1024", 16, True),
        ("qwen-image-edit-plus", 40, 4.0, "1024x1024", 16, True),
    ],
)
def test_the_numbers_of_the_larger_families(
    name: str, steps: int, guidance: float, size: str, step_px: int, commercial_use: bool
):
    profile = profiles()[name]

    assert (profile.default_steps, profile.default_guidance, str(profile.default_size)) == (steps, guidance, size)
    assert (profile.size_step_px, profile.commercial_use, profile.dtype["cuda"]) == (step_px, commercial_use, "bfloat16")


def test_the_transformers_config_tells_the_profiles_of_one_family_apart():
    for embeds, name in ((True, "flux.1-dev"), (False, "flux.1-schnell"), (None, "flux.1-schnell")):
        assert choose_profile(Family.FLUX1, traits=Traits(guidance_embeds=embeds), sidecar=Sidecar()).name == name


@pytest.mark.parametrize(
    ("family", "spacing", "sidecar", "name"),
    [
        (Family.SD15, "leading", Sidecar(), "sd15"),
        (Family.SD15, "trailing", Sidecar(), "sd15"),
        (Family.SDXL, "leading", Sidecar(), "sdxl"),
        (Family.SDXL, None, Sidecar(), "sdxl"),
        (Family.SDXL, "trailing", Sidecar(), "sdxl-turbo"),
        (Family.SDXL, "trailing", Sidecar(profile="animagine-xl-3.1"), "animagine-xl-3.1"),
        (Family.Z_IMAGE, None, Sidecar(), "z-image-turbo"),
    ],
)
def test_files_choose_the_profile_unless_the_sidecar_does(family: Family, spacing: str | None, sidecar: Sidecar, name: str):
    assert choose_profile(family, traits=Traits(timestep_spacing=spacing), sidecar=sidecar).name == name


def test_overrides_change_single_fields_and_are_checked():
    changed = choose_profile(
        Family.SD15, traits=Traits(), sidecar=Sidecar(overrides={"default_size": "768x768", "default_steps": 12})
    )
    assert (changed.default_size, changed.default_steps, changed.name) == (Size(768, 768), 12, "sd15")

    for overrides in ({"default_steps": 1000}, {"default_stepz": 4}, {"default_size": "9000x9000"}, {"name": "x"}):
        with pytest.raises(ValueError, match=r"overrid"):
            choose_profile(Family.SD15, traits=Traits(), sidecar=Sidecar(overrides=overrides))


def test_a_profile_of_another_family_is_refused():
    with pytest.raises(ValueError, match="is for sdxl, the checkpoint is sd15"):
        choose_profile(Family.SD15, traits=Traits(), sidecar=Sidecar(profile="sdxl"))


@pytest.mark.parametrize(
    "changes",
    [
        {"quality_steps": {"low": 1}},
        {"default_guidance": 40},
        {"prompt_template": "no slot"},
        {"default_size": "8x8"},
        {"typo": 1},
    ],
)
def test_a_profile_that_contradicts_itself_is_refused(changes: dict[str, object]):
    with pytest.raises(ValidationError):
        Profile.model_validate(profiles()["sd15"].model_dump(mode="json") | changes)
