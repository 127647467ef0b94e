"""The ControlNets of each family that has any, by the names of diffusers."""

from dataclasses import dataclass

from node.pipeline_classes import Family


@dataclass(frozen=True, slots=True)
class NetClass:
    """What a family's ControlNets are."""

    name: str
    sides: tuple[str, ...]
    """Values of its config that must be those of the model's denoiser; one that is null says nothing."""
    image_from_noise: str = "control_image"
    """What a pipeline from noise calls the picture that guides; those that start from another have always this name."""
    several: bool = True
    """Whether its pipelines take more than one at a time."""
    needs_config: bool = True
    """Whether its tensors do not say all of its sizes, so that it is used as a diffusers folder only."""


_OF_UNETS = NetClass("ControlNetModel", ("block_out_channels", "cross_attention_dim"), "image", needs_config=False)
_SIDES = ("in_channels", "num_attention_heads", "attention_head_dim", "joint_attention_dim")

NETS = {
    Family.SD15: _OF_UNETS,
    Family.SDXL: _OF_UNETS,
    Family.FLUX1: NetClass("FluxControlNetModel", _SIDES),
    Family.SD3: NetClass("SD3ControlNetModel", _SIDES),
    Family.QWEN_IMAGE: NetClass("QwenImageControlNetModel", _SIDES, several=False),
}
