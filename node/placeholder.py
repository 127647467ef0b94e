"""A small random checkpoint, made of the real classes, for a node that has no other.

Its pictures are noise of a kind that depends on prompt and seed: enough to try every route offline, and nothing more.
The module needs torch and diffusers, so it runs in a process of its own: `python -m node.placeholder FOLDER`.
"""

import os
import sys
from pathlib import Path
from typing import Any

PLACEHOLDER_SEED = 20260101
"""Any fixed number: the same weights on every machine."""
CLIP_VOCABULARY = 514
"""256 bytes, the same 256 at the end of a word, and the two marks of beginning and end."""


def write_placeholder_checkpoint(folder: Path) -> None:
    """Write a StableDiffusionPipeline of about half a megabyte to `folder`.

    Four levels in the VAE keep its real factor of 8 between latents and pixels.
    """
    import diffusers
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(PLACEHOLDER_SEED)
        pipeline = diffusers.StableDiffusionPipeline(
            vae=_autoencoder(diffusers),
            text_encoder=_text_encoder(),
            tokenizer=_tokenizer(),
            unet=_unet(diffusers),
            scheduler=diffusers.DDIMScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule="scaled_linear",
                clip_sample=False,
                set_alpha_to_one=False,
                steps_offset=1,
            ),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    pipeline.save_pretrained(folder, safe_serialization=True)


def _autoencoder(diffusers: Any) -> Any:
    return diffusers.AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        norm_num_groups=4,
        sample_size=64,
    ).eval()


def _text_encoder() -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=CLIP_VOCABULARY,
            bos_token_id=CLIP_VOCABULARY - 2,
            eos_token_id=CLIP_VOCABULARY - 1,
            pad_token_id=CLIP_VOCABULARY - 1,
            hidden_size=32,
            intermediate_size=37,
            num_attention_heads=4,
            num_hidden_layers=3,
            projection_dim=32,
            max_position_embeddings=77,
        )
    ).eval()


def _tokenizer() -> Any:
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=77)


def _unet(diffusers: Any) -> Any:
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=4,
    ).eval()


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    write_placeholder_checkpoint(Path(sys.argv[1]))
