"""What each model family wants, and how a checkpoint comes by its profile."""

import pytest
from pydantic import ValidationError

from common.images_api import Quality, Size
from node.pipeline_classes import Family
from node.profile import Profile, Sidecar, choose_profile, profiles
from node.traits import Traits

SD_CLASS = ["animagine-xl-3.1", "aquatint-demo", "sd15", "sdxl"]
DISTILLED = ["flux.1-schnell", "flux.2-klein-4b", "flux.2-klein-9b", "sd3.5-large-turbo", "sdxl-turbo", "z-image-turbo"]
LARGER = [
    "flux.1-dev",
    "flux.1-kontext",
    "flux.2-klein-base-4b",
    "flux.2-klein-base-9b",
    "ovis-image",
    "qwen-image",
    "qwen-image-edit",
    "qwen-image-edit-plus",
    "sana",
    "sd3-medium",
    "sd3.5-large",
    "sd3.5-medium",
]
"""Models with guidance whose style has no number."""


def test_every_shipped_profile_is_valid_and_none_is_missing():
    assert sorted(profiles()) == sorted(SD_CLASS + DISTILLED + LARGER)


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


@pytest.mark.parametrize("name", SD_CLASS + DISTILLED + LARGER)
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
        ("flux.1-kontext", 28, 2.5, "1024x1024", 16, False),
        ("flux.2-klein-4b", 4, 0, "1024x1024", 16, True),
        ("flux.2-klein-9b", 4, 0, "1024x1024", 16, False),
        ("flux.2-klein-base-4b", 50, 4.0, "1024x1024", 16, True),
        ("flux.2-klein-base-9b", 50, 4.0, "1024x1024", 16, False),
        ("sd3-medium", 28, 7.0, "1024x1024", 16, True),
        ("sd3.5-medium", 40, 4.5, "1024x1024", 16, True),
        ("sd3.5-large", 28, 3.5, "1024x1024", 16, True),
        ("sd3.5-large-turbo", 4, 0, "1024x1024", 16, True),
        ("sana", 20, 4.5, "1024x1024", 32, False),
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


@pytest.mark.parametrize(
    ("family", "traits", "name"),
    [
        (Family.FLUX1, Traits(guidance_embeds=True), "flux.1-dev"),
        (Family.FLUX1, Traits(guidance_embeds=False), "flux.1-schnell"),
        (Family.FLUX1, Traits(), "flux.1-schnell"),
        (Family.FLUX1_KONTEXT, Traits(guidance_embeds=True), "flux.1-kontext"),
        (Family.FLUX2_KLEIN, Traits(is_distilled=True, text_width=7680), "flux.2-klein-4b"),
        (Family.FLUX2_KLEIN, Traits(is_distilled=True, text_width=12288), "flux.2-klein-9b"),
        (Family.FLUX2_KLEIN, Traits(is_distilled=False, text_width=12288), "flux.2-klein-base-9b"),
        (Family.FLUX2_KLEIN, Traits(text_width=7680), "flux.2-klein-base-4b"),
        (Family.SD3, Traits(layers=24), "sd3-medium"),
        (Family.SD3, Traits(layers=24, dual_attention=True), "sd3.5-medium"),
        (Family.SD3, Traits(layers=38), "sd3.5-large"),
        (Family.QWEN_IMAGE, Traits(), "qwen-image"),
        (Family.QWEN_IMAGE_EDIT_PLUS, Traits(), "qwen-image-edit-plus"),
        (Family.SANA, Traits(), "sana"),
    ],
)
def test_configs_tell_the_profiles_of_one_family_apart(family: Family, traits: Traits, name: str):
    assert choose_profile(family, traits=traits, sidecar=Sidecar()).name == name


def test_values_of_configs_that_are_of_another_type_count_as_absent():
    odd = {"timestep_spacing": 1, "guidance_embeds": "yes", "is_distilled": 1, "joint_attention_dim": True, "num_layers": "38"}

    assert Traits.of(pipeline=odd, sampler=odd, denoiser=odd) == Traits()


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
