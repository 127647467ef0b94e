"""Writes tiny random checkpoints of every family from the real classes: 0.5 to 2 MB, no network, the same bytes always.

`python -m tests.checkpoints.tiny FOLDER [KIND ...]` writes FOLDER/KIND for each kind, or for all of them. Tests run it
as a process of its own, so that torch is imported there and its warnings stay there.
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SEED = 7
FLUX_VAE: dict[str, Any] = {
    "latent_channels": 16,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
"""What Z-Image's autoencoder shares with Flux's."""
SD_NOISE: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
QWEN_MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def sd15() -> Any:
    """StableDiffusionPipeline."""
    import diffusers

    return diffusers.StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=clip_encoder(width=32),
        tokenizer=clip_tokenizer(),
        unet=unet(text_width=32),
        scheduler=diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **SD_NOISE),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def sdxl(spacing: str = "leading") -> Any:
    """StableDiffusionXLPipeline. The encoders differ in width, as single-file loading tells them apart by it."""
    import diffusers

    return diffusers.StableDiffusionXLPipeline(
        vae=autoencoder(scaling_factor=0.13025),
        text_encoder=clip_encoder(width=32),
        text_encoder_2=clip_encoder(width=64, projection=True),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=unet(
            text_width=32 + 64,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            transformer_layers_per_block=(1, 2),
            projection_class_embeddings_input_dim=6 * 8 + 64,
        ),
        scheduler=diffusers.EulerDiscreteScheduler(timestep_spacing=spacing, **SD_NOISE),
    )


def sdxl_turbo() -> Any:
    """SDXL whose sampler is `trailing`, as the few-step checkpoints have it."""
    return sdxl("trailing")


def z_image() -> Any:
    """ZImagePipeline."""
    import diffusers
    import torch

    transformer = diffusers.ZImageTransformer2DModel(
        all_patch_size=(2,),
        all_f_patch_size=(1,),
        in_channels=16,
        dim=32,
        n_layers=2,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[8, 4, 4],
        axes_lens=[1024, 64, 64],
    ).eval()
    with torch.no_grad():
        # The class leaves these uninitialised: now and then they would hold NaN.
        transformer.x_pad_token.fill_(1.0)
        transformer.cap_pad_token.fill_(1.0)
    return diffusers.ZImagePipeline(
        transformer=transformer,
        vae=autoencoder(**FLUX_VAE),
        text_encoder=qwen_encoder(),
        tokenizer=qwen_tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


KINDS: dict[str, Callable[[], Any]] = {"sd15": sd15, "sdxl": sdxl, "sdxl-turbo": sdxl_turbo, "z-image": z_image}


def write(kind: str, folder: Path) -> None:
    """Write one checkpoint as a diffusers folder."""
    import torch

    torch.manual_seed(SEED)
    KINDS[kind]().save_pretrained(folder, safe_serialization=True)


def autoencoder(**settings: Any) -> Any:
    """Four levels keep the real factor of 8."""
    import diffusers

    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        norm_num_groups=4,
        sample_size=64,
        **{"latent_channels": 4, **settings},
    ).eval()


def unet(*, text_width: int, **settings: Any) -> Any:
    """Two levels, 8 and 16 channels."""
    import diffusers

    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=text_width,
        attention_head_dim=4,
        norm_num_groups=4,
        **settings,
    ).eval()


def clip_tokenizer() -> Any:
    """256 bytes, the same at the end of a word, and the two marks."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=77)


def clip_encoder(*, width: int, projection: bool = False) -> Any:
    """CLIP's text half; `projection` for SDXL's second."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=514,
        bos_token_id=512,
        eos_token_id=513,
        pad_token_id=513,
        hidden_size=width,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=3,
        projection_dim=width,
        max_position_embeddings=77,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def qwen_tokenizer(marks: Sequence[str] = QWEN_MARKS) -> Any:
    """256 bytes and the marks of a chat."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    tokenizer = Qwen2Tokenizer(
        vocab={letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))},
        merges=[],
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        model_max_length=4096,
        extra_special_tokens=list(marks),
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def qwen_encoder(name: str = "Qwen3Model", *, layers: int = 2) -> Any:
    """Qwen3. name: a class of transformers."""
    import transformers

    return getattr(transformers, name)(
        transformers.Qwen3Config(
            vocab_size=256 + len(QWEN_MARKS),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=4096,
            bos_token_id=256,
            eos_token_id=258,
        )
    ).eval()


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    target, kinds = Path(sys.argv[1]), sys.argv[2:] or list(KINDS)
    for each in kinds:
        write(each, target / each)
