"""Checkpoints of random weights in their real sizes: speed and memory do not depend on what the weights say.

Architectures are those of the public configs of stabilityai/stable-diffusion-xl-base-1.0 and Tongyi-MAI/Z-Image-Turbo. Their
tokenizers are not at hand without a network, so prompts are read byte by byte; the text encoders are of full size all the
same. Weights are drawn straight in the number format they are stored in, on the device that will run them if there is one.
"""

from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

SPREAD = 0.02
"""Of the weights: what most of these models begin their training with. Scales of normalisations are 1."""
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

Make = Callable[[Callable[[], Any]], Any]
"""Gives what a function builds, with weights."""


class Build(StrEnum):
    """What can be built."""

    SDXL = "sdxl"
    Z_IMAGE = "z-image"


class Scale(StrEnum):
    """How large."""

    FULL = "full"
    TINY = "tiny"
    """Few channels and layers: shows on any machine that the measuring itself works."""


def write(build: Build, scale: Scale, folder: Path, *, dtype: str, device: str) -> None:
    """Write a diffusers folder. dtype: of the weights. Needs the whole model's memory on the device for its largest part."""
    pipeline_of(build, scale, _Maker(getattr(torch, dtype), device)).save_pretrained(folder, safe_serialization=True)


def pipeline_of(build: Build, scale: Scale, make: Make) -> Any:
    """The pipeline, of parts as `make` makes them."""
    return (_sdxl if build is Build.SDXL else _z_image)(scale is Scale.FULL, make)


class _Maker:
    """Builds parts without their usual initialisation, which takes minutes of a CPU for billions of weights."""

    def __init__(self, dtype: torch.dtype, device: str) -> None:
        self._dtype = dtype
        self._device = device
        self._draw = torch.Generator(device).manual_seed(7)

    def __call__(self, build: Callable[[], Any]) -> Any:
        with torch.device("meta"):
            part = build()
        weights = {name: self._tensor(name, each) for name, each in part.state_dict().items()}
        part.load_state_dict(weights, assign=True)
        # The rest is what no file holds: tables that a load makes anew.
        return part.eval()

    def _tensor(self, name: str, like: torch.Tensor) -> torch.Tensor:
        if "norm" in name and like.ndim == 1:
            return torch.full(like.shape, float(name.endswith("weight")), dtype=self._dtype, device=self._device)
        drawn = torch.empty(like.shape, dtype=self._dtype, device=self._device)
        return drawn.normal_(0, SPREAD, generator=self._draw)


def _sdxl(full: bool, make: Make) -> Any:
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel

    wide, narrow = (1280, 768) if full else (64, 32)
    unet = make(
        lambda: UNet2DConditionModel(
            sample_size=128,
            in_channels=4,
            out_channels=4,
            block_out_channels=(320, 640, 1280) if full else (16, 32, 64),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            layers_per_block=2 if full else 1,
            transformer_layers_per_block=(1, 2, 10) if full else (1, 1, 2),
            attention_head_dim=(5, 10, 20) if full else 4,
            cross_attention_dim=wide + narrow,
            norm_num_groups=32 if full else 8,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=6 * 256 + wide,
        )
    )
    tokenizer = _clip_tokenizer()
    return diffusers.StableDiffusionXLPipeline(
        vae=make(lambda: AutoencoderKL(**_autoencoder(full), latent_channels=4, scaling_factor=0.13025, sample_size=1024)),
        text_encoder=make(lambda: transformers.CLIPTextModel(_clip(narrow, 12 if full else 2, "quick_gelu"))),
        text_encoder_2=make(
            lambda: transformers.CLIPTextModelWithProjection(_clip(wide, 32 if full else 2, "gelu", heads=20 if full else 4))
        ),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            timestep_spacing="leading",
            interpolation_type="linear",
        ),
    )


def _z_image(full: bool, make: Make) -> Any:
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, ZImageTransformer2DModel

    width = 2560 if full else 32
    sizes: Mapping[str, Any] = {} if full else {"dim": 64, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2}
    axes = {} if full else {"axes_dims": [16, 8, 8]}
    qwen = transformers.Qwen3Config(
        vocab_size=151936 if full else 512,
        hidden_size=width,
        intermediate_size=9728 if full else 64,
        num_hidden_layers=36 if full else 2,
        num_attention_heads=32 if full else 2,
        num_key_value_heads=8 if full else 2,
        head_dim=128 if full else 16,
        max_position_embeddings=40960,
        tie_word_embeddings=True,
    )
    return diffusers.ZImagePipeline(
        # The class's own defaults are Z-Image's.
        transformer=make(lambda: ZImageTransformer2DModel(cap_feat_dim=width, **sizes, **axes)),
        vae=make(
            lambda: AutoencoderKL(
                **_autoencoder(full),
                latent_channels=16,
                scaling_factor=0.3611,
                shift_factor=0.1159,
                use_quant_conv=False,
                use_post_quant_conv=False,
                sample_size=1024,
            )
        ),
        text_encoder=make(lambda: transformers.Qwen3Model(qwen)),
        tokenizer=_qwen_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def _autoencoder(full: bool) -> dict[str, Any]:
    """What both have in common: four levels, a factor of 8."""
    return {
        "block_out_channels": (128, 256, 512, 512) if full else (8, 8, 16, 16),
        "layers_per_block": 2 if full else 1,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "norm_num_groups": 32 if full else 4,
    }


def _clip(width: int, layers: int, activation: str, heads: int | None = None) -> Any:
    return transformers.CLIPTextConfig(
        vocab_size=49408 if width > 64 else 514,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
        hidden_size=width,
        intermediate_size=4 * width,
        num_attention_heads=heads or (12 if width > 64 else 4),
        num_hidden_layers=layers,
        projection_dim=width,
        hidden_act=activation,
        max_position_embeddings=77,
    )


def _clip_tokenizer() -> Any:
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def _qwen_tokenizer() -> Any:
    from tokenizers.pre_tokenizers import ByteLevel

    tokenizer = transformers.Qwen2Tokenizer(
        vocab={letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))},
        merges=[],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        model_max_length=4096,
        extra_special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"],
    )
    tokenizer.chat_template = CHAT
    return tokenizer
