"""Samplers by their public names, made afresh for every picture from the checkpoint's own config."""

from typing import Any

import diffusers

_CLASSES: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler-a": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "dpmpp-2m-karras": (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "ddim": (diffusers.DDIMScheduler, {"clip_sample": False}),
    "lcm": (diffusers.LCMScheduler, {}),
}


def make_sampler(name: str, checkpoint_sampler: Any, timestep_spacing: str | None) -> Any:
    """A new solver object: they carry state from step to step, so no two pictures may share one.

    name: one of node.profile.Sampler; "checkpoint" is the class the checkpoint names. timestep_spacing: None leaves
    what the checkpoint's config says.
    """
    sampler, settings = _CLASSES.get(name, (type(checkpoint_sampler), {}))
    if timestep_spacing is not None:
        settings = settings | {"timestep_spacing": timestep_spacing}
    return sampler.from_config(checkpoint_sampler.config, **settings)
