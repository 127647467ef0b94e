"""A tiny IP-Adapter and a tiny image encoder for the tiny models."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

GIVES = 12
"""Width of the encoder's vectors."""


def adapter_for(unet: Any, *, seed: int = 1, tokens: int = 4, strength: float = 1.0) -> dict[str, Tensor]:
    """Random weights in the names of IP-Adapter's files: a layer for each cross-attention, numbered oddly."""
    dice = torch.Generator().manual_seed(seed)
    width: int = unet.config.cross_attention_dim
    tensors = {
        "image_proj.proj.weight": torch.randn(tokens * width, GIVES, generator=dice),
        "image_proj.proj.bias": torch.zeros(tokens * width),
        "image_proj.norm.weight": torch.ones(width),
        "image_proj.norm.bias": torch.zeros(width),
    }
    crossing = [module for path, module in unet.named_modules() if path.endswith("attn2")]
    for number, attention in enumerate(crossing):
        for part in ("to_k_ip", "to_v_ip"):
            drawn = torch.randn(attention.to_k.out_features, width, generator=dice)
            tensors[f"ip_adapter.{2 * number + 1}.{part}.weight"] = strength * drawn
    return tensors


def encoder() -> Any:
    """CLIP's half for pictures."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(3)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=GIVES,
    )
    return CLIPVisionModelWithProjection(config).eval()


def write_image_prompt(folder: Path, unet: Any, family: str, **changes: Any) -> None:
    """Both, as ComfyUI keeps them; the encoder with its config, and the adapter's family said, for tiny widths tell neither."""
    encoder().save_pretrained(folder / "clip_vision" / "tiny")
    path = folder / "ipadapter" / f"{family}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(adapter_for(unet, **changes), path)
    path.with_suffix(".toml").write_text(f'family = "{family}"\n')
