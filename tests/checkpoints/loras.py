"""Writes tiny random LoRAs in the two ways of naming that files have: diffusers' and kohya's."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj")


def random_lora(
    model: Any, prefix: str, targets: tuple[str, ...] = ATTENTION, *, rank: int = 4, seed: int = 1, strength: float = 0.5
) -> dict[str, Tensor]:
    """Both matrices random, so that it changes the picture, for every layer whose name ends in one of `targets`."""
    dice = torch.Generator().manual_seed(seed)
    made: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        # A layer that was wrapped for another LoRA has its own matrices inside.
        if path.endswith(targets) and "lora_" not in path and hasattr(module, "weight"):
            out_width, in_width = module.weight.shape
            made[f"{prefix}.{path}.lora_A.weight"] = torch.randn(rank, in_width, generator=dice) / in_width**0.5
            made[f"{prefix}.{path}.lora_B.weight"] = strength * torch.randn(out_width, rank, generator=dice)
    assert made, f"no layers of {targets} below {prefix}"
    return made


def in_kohyas_names(tensors: Mapping[str, Tensor], *, alpha: float, two_encoders: bool = False) -> dict[str, Tensor]:
    """The same with underscores for dots, and an `alpha` for each layer: its effect is alpha / rank of the plain one."""
    return dict(_kohya(tensors, alpha, "lora_te1" if two_encoders else "lora_te"))


def _kohya(tensors: Mapping[str, Tensor], alpha: float, encoder: str) -> Iterator[tuple[str, Tensor]]:
    prefixes = {"unet": "lora_unet", "text_encoder": encoder, "text_encoder_2": "lora_te2"}
    for name, tensor in tensors.items():
        component, _, path = name.partition(".")
        module, end = path.rsplit(".lora_", 1)
        if component.startswith("text_encoder") and not module.startswith("text_model."):
            # As the class was when kohya's scripts named it.
            module = f"text_model.{module}"
        base = f"{prefixes[component]}_{module.replace('.', '_')}"
        if end == "A.weight":
            yield f"{base}.lora_down.weight", tensor
            yield f"{base}.alpha", torch.tensor(alpha)
        else:
            yield f"{base}.lora_up.weight", tensor


def write_lora(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    """Write a file, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path
