"""Tiny random RRDBNets as files, in the three ways their tensors have been named."""

import re
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from node.upscalers import Shape, layers_of

TINY = Shape(channels=4, growth=2, blocks=2, doublings=2, unshuffle=1)
FOLDED = Shape(channels=4, growth=2, blocks=1, doublings=2, unshuffle=2)


def random_net(shape: Shape = TINY, *, seed: int = 1) -> dict[str, Tensor]:
    """Weights that keep the size of what goes through, in the newest names."""
    dice = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (size_in, size_out) in layers_of(shape).items():
        tensors[f"{name}.weight"] = torch.randn(size_out, size_in, 3, 3, generator=dice) / (9 * size_in) ** 0.5
        tensors[f"{name}.bias"] = torch.full((size_out,), 0.1)
    return tensors


def in_first_names(tensors: dict[str, Tensor], shape: Shape = TINY) -> dict[str, Tensor]:
    """As ESRGAN's first files, which most of the older ones are: numbers of a sequence."""
    at = {"conv_first": "0", "conv_body": f"1.sub.{shape.blocks}"}
    at |= {f"conv_up{number + 1}": str(3 * number + 3) for number in range(shape.doublings)}
    last = 3 * shape.doublings
    at |= {"conv_hr": str(last + 2), "conv_last": str(last + 4)}
    out = {}
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition(".")
        if match := re.fullmatch(r"body\.(\d+)\.rdb(\d)\.(conv\d)", layer):
            out[f"model.1.sub.{match[1]}.RDB{match[2]}.{match[3]}.0.{part}"] = tensor
        else:
            out[f"model.{at[layer]}.{part}"] = tensor
    return out


def in_second_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As ESRGAN's later files."""
    words = {"body.": "RRDB_trunk.", "rdb": "RDB", "conv_body": "trunk_conv", "conv_up": "upconv", "conv_hr": "HRconv"}
    out = {}
    for name, tensor in tensors.items():
        for new, old in words.items():
            name = name.replace(new, old) if not (new == "body." and name.startswith("conv_body")) else name
        out[name] = tensor
    return out


def write_upscaler(path: Path, tensors: dict[str, Tensor]) -> Path:
    """Write a file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path)
    return path
