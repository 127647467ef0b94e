"""A router takes a request for as much work as the node will."""

from dataclasses import replace
from typing import Any

import pytest

from common.images_api import ImageRequest, InputFidelity, OutputFormat, Preset, Quality, Size, Task, UpscaleAsk
from common.images_api.request import Upload
from common.node_api import ModelStatus
from node.engines.base import UpscaleUse
from node.pipeline_classes import class_of
from node.profile import Profile, profiles
from node.resolve import resolve, usual_preset, usual_strength
from router.work import ask_of

PICTURE = Upload("image", (), OutputFormat.PNG, 512, 768)
SIZE = Size(512, 512)
REQUESTS: list[dict[str, Any]] = [
    {"task": Task.GENERATION},
    {"task": Task.GENERATION, "n": 3, "size": Size(500, 260), "num_inference_steps": 4},
    {"task": Task.GENERATION, "quality": Quality.HIGH, "size": SIZE},
    {"task": Task.GENERATION, "size": SIZE, "upscale": UpscaleAsk(by=1.5)},
    {"task": Task.EDIT, "size": SIZE, "images": (PICTURE,)},
    {"task": Task.EDIT, "size": SIZE, "images": (PICTURE,), "mask": PICTURE},
    {"task": Task.EDIT, "size": SIZE, "images": (PICTURE,), "strength": 0.3},
    {"task": Task.EDIT, "size": SIZE, "images": (PICTURE,), "input_fidelity": InputFidelity.HIGH},
    {"task": Task.VARIATION, "size": SIZE, "images": (PICTURE,), "n": 2},
]
CASES = [
    (name, fields)
    for name, profile in profiles().items()
    for fields in REQUESTS
    if fields["task"] in class_of(profile.family).tasks
]


def told(name: str, profile: Profile) -> ModelStatus:
    """What a node says of it."""
    return ModelStatus(
        id=name,
        family="f",
        profile=name,
        tasks=[],
        created=0,
        resident=True,
        capabilities={
            "default_size": str(profile.default_size),
            "size_step_px": profile.size_step_px,
            "default_steps": profile.default_steps,
        },
        usual_strength=usual_strength(profile, image_prompt=False),
        usual_preset=usual_preset(profile, Preset.FULL).value,
        quality_steps={str(quality): steps for quality, steps in profile.quality_steps.items()},
    )


def test_every_profile_is_tried():
    assert len(CASES) > 3 * len(profiles())


@pytest.mark.parametrize(("name", "fields"), CASES, ids=str)
def test_predicted_units_are_the_nodes(name: str, fields: dict[str, Any]):
    profile = profiles()[name]
    request = ImageRequest(prompt="x", **fields)
    spec = resolve(request, name, profile, embed_parameters=False, masked=request.mask is not None).spec
    if request.upscale is not None:
        large = Size(768, 768)
        use = UpscaleUse(by=1.5, method="latent", strength=request.upscale.second_pass, size=large, drawn=large)
        spec = replace(spec, upscale=use)

    ask = ask_of(request, name, told(name, profile), loras=frozenset(), extras=frozenset())

    assert ask.units == pytest.approx(spec.work_units)
