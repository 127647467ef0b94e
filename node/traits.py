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
    is_distilled: bool | None = None
    """Of the pipeline: false for the base models of FLUX.2 [klein]."""
    text_width: int | None = None
    """Of the transformer, `joint_attention_dim`: three layers of Qwen3, 2560 wide in the one of 4 B, 4096 in that of 8 B."""
    layers: int | None = None
    """Of the transformer: 38 in SD 3.5 Large, 24 in the smaller ones."""
    dual_attention: bool = False
    """Whether some of its layers have two attentions, as in SD 3.5 Medium."""

    @classmethod
    def of(cls, *, pipeline: Mapping[str, Any], sampler: Mapping[str, Any], denoiser: Mapping[str, Any]) -> Self:
        """Those of the configs of a folder; values of another type than expected count as absent."""

        def value(config: Mapping[str, Any], name: str, kind: type) -> Any:
            # Not isinstance: true is an int in Python.
            return config.get(name) if type(config.get(name)) is kind else None

        return cls(
            timestep_spacing=value(sampler, "timestep_spacing", str),
            guidance_embeds=value(denoiser, "guidance_embeds", bool),
            is_distilled=value(pipeline, "is_distilled", bool),
            text_width=value(denoiser, "joint_attention_dim", int),
            layers=value(denoiser, "num_layers", int),
            dual_attention=bool(denoiser.get("dual_attention_layers")),
        )


def usual_profile(family: Family, traits: Traits) -> str:
    """The name of the profile a checkpoint gets when its sidecar names none."""
    if family is Family.SDXL:
        return "sdxl-turbo" if traits.timestep_spacing == "trailing" else "sdxl"
    if family is Family.FLUX1:
        return "flux.1-dev" if traits.guidance_embeds else "flux.1-schnell"
    if family is Family.FLUX2_KLEIN:
        size = "9b" if (traits.text_width or 0) >= 3 * 4096 else "4b"
        return f"flux.2-klein-{size}" if traits.is_distilled else f"flux.2-klein-base-{size}"
    if family is Family.SD3:
        if (traits.layers or 0) >= 38:
            return "sd3.5-large"
        return "sd3.5-medium" if traits.dual_attention else "sd3-medium"
    return "z-image-turbo" if family is Family.Z_IMAGE else family.value
