"""Tiny random checkpoints of the larger families, as `tiny.py` makes them: `python -m tests.checkpoints.families FOLDER`."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.checkpoints.tiny import FLUX_VAE, SEED, autoencoder, clip_encoder, clip_tokenizer


def flux1_dev(guidance: bool = True) -> Any:
    """FluxPipeline."""
    import diffusers

    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        out_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=guidance,
    ).eval()
    return diffusers.FluxPipeline(
        transformer=transformer,
        vae=autoencoder(**FLUX_VAE),
        text_encoder=clip_encoder(width=32),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_encoder(width=32),
        tokenizer_2=t5_tokenizer(),
        scheduler=dynamic_sampler(),
    )


def flux1_schnell() -> Any:
    """The same without guidance."""
    return flux1_dev(guidance=False)


KINDS: dict[str, Callable[[], Any]] = {"flux.1-dev": flux1_dev, "flux.1-schnell": flux1_schnell}


def dynamic_sampler() -> Any:
    """The flow-matching solver whose shift depends on the size."""
    import diffusers

    return diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


def t5_tokenizer() -> Any:
    """One token a printable character."""
    from transformers import T5Tokenizer

    marks = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    letters = [(chr(code), -3.0) for code in range(33, 127)]
    return T5Tokenizer(vocab=marks + letters, extra_ids=0, model_max_length=512)


def t5_encoder(*, width: int) -> Any:
    """Two layers."""
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(vocab_size=200, d_model=width, d_kv=8, d_ff=37, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu")
    ).eval()


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch

    for kind, build in KINDS.items():
        torch.manual_seed(SEED)
        build().save_pretrained(Path(sys.argv[1]) / kind, safe_serialization=True)
