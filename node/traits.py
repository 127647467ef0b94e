"""What a checkpoint's configs say of it beyond its family: enough to choose among the profiles of one family."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from node.pipeline_classes import Family


@dataclass(frozen=True, slots=True)
class Traits:
    """Values of the configs as they stand; None where a config does not have them."""

    timestep_spacing: str | None = None
    """Of the sampler: "trailing" marks the few-step SDXL checkpoints; SDXL itself ships with "leading"."""
    guidance_embeds: bool | None = None
    """Of the transformer: FLUX.1 [dev] was taught its guidance as an input, [schnell] has none."""

    @classmethod
    def of(cls, *, sampler: Mapping[str, Any], denoiser: Mapping[str, Any]) -> Self:
        """Those of the configs of a folder; values of another type than expected count as absent."""
        spacing, embeds = sampler.get("timestep_spacing"), denoiser.get("guidance_embeds")
        return cls(
            timestep_spacing=spacing if isinstance(spacing, str) else None,
            guidance_embeds=embeds if isinstance(embeds, bool) else None,
        )


def usual_profile(family: Family, traits: Traits) -> str:
    """The name of the profile a checkpoint gets when its sidecar names none."""
    if family is Family.SDXL:
        return "sdxl-turbo" if traits.timestep_spacing == "trailing" else "sdxl"
    if family is Family.FLUX1:
        return "flux.1-dev" if traits.guidance_embeds else "flux.1-schnell"
    return "z-image-turbo" if family is Family.Z_IMAGE else family.value
