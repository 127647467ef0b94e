"""Tiny ControlNets for the tiny models, as a diffusers folder and as single files in both ways of naming."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.checkpoints.single_file import RESNET, Tensors, renamed

WIDTHS = (4, 4, 8, 8)


def control_net(unet: Any, *, seed: int = 1, strength: float = 0.5) -> Any:
    """A ControlNet for a UNet. strength: 0 leaves it as training begins, when it changes nothing."""
    import diffusers

    torch.manual_seed(seed)
    net = diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=WIDTHS)
    with torch.no_grad():
        # The convolutions that begin as zeros: at the end of the picture's embedding, and in front of the UNet.
        zeros = [net.controlnet_cond_embedding.conv_out, *net.controlnet_down_blocks, net.controlnet_mid_block]
        for layer in zeros if strength else ():
            layer.weight.normal_(0.0, strength)
    return net.eval()


def write_control(path: Path, net: Any, *, inventors: bool = False) -> Path:
    """Write a single file, in diffusers' names or in those of ControlNet's inventors, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = net.state_dict()
    named = in_inventors_names(tensors, net.config.layers_per_block) if inventors else tensors
    save_file({name: tensor.contiguous() for name, tensor in named.items()}, path)
    return path


def in_inventors_names(tensors: dict[str, Tensor], layers_per_block: int) -> Tensors:
    """What diffusers' converter (`convert_controlnet_checkpoint`) reads, the other way round."""
    out = renamed(tensors, "time_embedding.linear_1", "time_embed.0") | renamed(
        tensors, "time_embedding.linear_2", "time_embed.2"
    )
    out |= renamed(tensors, "add_embedding.linear_1", "label_emb.0.0") | renamed(
        tensors, "add_embedding.linear_2", "label_emb.0.2"
    )
    out |= renamed(tensors, "conv_in.", "input_blocks.0.0.") | renamed(tensors, "controlnet_mid_block", "middle_block_out.0")
    hints = ["conv_in", *(f"blocks.{n}" for n in range(2 * len(WIDTHS) - 2)), "conv_out"]
    for number, hint in enumerate(hints):
        out |= renamed(tensors, f"controlnet_cond_embedding.{hint}.", f"input_hint_block.{2 * number}.")
    per_level = layers_per_block + 1
    for number in range(100):
        level, place = divmod(number, per_level)
        block = f"input_blocks.{number + 1}"
        out |= renamed(tensors, f"controlnet_down_blocks.{number}.", f"zero_convs.{number}.0.")
        out |= renamed(tensors, f"down_blocks.{level}.resnets.{place}.", f"{block}.0.", RESNET)
        out |= renamed(tensors, f"down_blocks.{level}.attentions.{place}.", f"{block}.1.")
        if place == layers_per_block:
            out |= renamed(tensors, f"down_blocks.{level}.downsamplers.0.conv.", f"{block}.0.op.")
    for old, new in (("resnets.0", "0"), ("attentions.0", "1"), ("resnets.1", "2")):
        out |= renamed(tensors, f"mid_block.{old}.", f"middle_block.{new}.", RESNET if "resnets" in old else ())
    return {f"control_model.{name}": tensor for name, tensor in out.items()}
