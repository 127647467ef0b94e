"""Tiny random checkpoints of the larger families, as `tiny.py` makes them: `python -m tests.checkpoints.families FOLDER`."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.checkpoints.tiny import (
    CHAT_TEMPLATE,
    FLUX_VAE,
    SEED,
    autoencoder,
    clip_encoder,
    clip_tokenizer,
    qwen_encoder,
    qwen_tokenizer,
)

QWEN_VL_MARKS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


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


def qwen_image() -> Any:
    """QwenImagePipeline."""
    import diffusers

    return diffusers.QwenImagePipeline(tokenizer=qwen_tokenizer(QWEN_VL_MARKS), **qwen_image_parts())


def qwen_image_edit(name: str = "QwenImageEditPipeline") -> Any:
    """QwenImageEditPipeline."""
    import diffusers

    pipeline = getattr(diffusers, name)
    return pipeline(tokenizer=qwen_tokenizer(QWEN_VL_MARKS), processor=qwen_processor(), **qwen_image_parts())


def qwen_image_edit_plus() -> Any:
    """QwenImageEditPlusPipeline."""
    return qwen_image_edit("QwenImageEditPlusPipeline")


def flux1_kontext() -> Any:
    """FluxKontextPipeline, of the parts of FluxPipeline."""
    import diffusers

    return diffusers.FluxKontextPipeline(**flux1_dev().components)


def flux2_klein(distilled: bool = True) -> Any:
    """Flux2KleinPipeline. It reads the encoder's layers 9, 18 and 27, so there must be as many."""
    import diffusers

    transformer = diffusers.Flux2Transformer2DModel(
        patch_size=1,
        in_channels=128,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * 32,
        timestep_guidance_channels=32,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=False,
    ).eval()
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=32,
        norm_num_groups=2,
        sample_size=64,
    ).eval()
    return diffusers.Flux2KleinPipeline(
        transformer=transformer,
        vae=vae,
        text_encoder=qwen_encoder("Qwen3ForCausalLM", layers=27),
        tokenizer=qwen_tokenizer(),
        scheduler=dynamic_sampler(),
        is_distilled=distilled,
    )


def flux2_klein_base() -> Any:
    """The same, not distilled."""
    return flux2_klein(distilled=False)


def sd3() -> Any:
    """StableDiffusion3Pipeline."""
    import diffusers

    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=16,
        # A ControlNet guides all but the last.
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        out_channels=16,
    ).eval()
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        vae=autoencoder(**FLUX_VAE),
        text_encoder=clip_encoder(width=32, projection=True),
        text_encoder_2=clip_encoder(width=32, projection=True),
        text_encoder_3=t5_encoder(width=64),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        tokenizer_3=t5_tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def sana() -> Any:
    """SanaPipeline, its autoencoder with the real factor of 32."""
    import diffusers
    from transformers import Gemma2Config, Gemma2Model

    transformer = diffusers.SanaTransformer2DModel(
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=8,
        sample_size=8,
    ).eval()
    blocks, widths = ("ResBlock",) * 5 + ("EfficientViTBlock",), (4, 4, 8, 8, 8, 8)
    vae = diffusers.AutoencoderDC(
        in_channels=3,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        encoder_qkv_multiscales=((),) * 5 + ((5,),),
        decoder_qkv_multiscales=((),) * 5 + ((5,),),
        encoder_layers_per_block=(1,) * 6,
        decoder_layers_per_block=(1,) * 6,
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    ).eval()
    encoder = Gemma2Model(
        Gemma2Config(
            head_dim=16,
            hidden_size=8,
            intermediate_size=64,
            num_attention_heads=2,
            num_hidden_layers=1,
            num_key_value_heads=2,
            vocab_size=400,
            attn_implementation="eager",
        )
    ).eval()
    return diffusers.SanaPipeline(
        transformer=transformer,
        vae=vae,
        text_encoder=encoder,
        tokenizer=gemma_tokenizer(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


KINDS: dict[str, Callable[[], Any]] = {
    "flux.1-dev": flux1_dev,
    "flux.1-schnell": flux1_schnell,
    "flux.1-kontext": flux1_kontext,
    "flux.2-klein-4b": flux2_klein,
    "flux.2-klein-base-4b": flux2_klein_base,
    "qwen-image": qwen_image,
    "qwen-image-edit": qwen_image_edit,
    "qwen-image-edit-plus": qwen_image_edit_plus,
    "sana": sana,
    "sd3-medium": sd3,
}


def dynamic_sampler() -> Any:
    """The flow-matching solver whose shift depends on the size."""
    import diffusers

    return diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


def qwen_image_parts() -> dict[str, Any]:
    """What every Qwen-Image pipeline has."""
    import diffusers

    transformer = diffusers.QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        # A cache of the first block needs one behind it.
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(8, 4, 4),
    ).eval()
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=2,
        z_dim=4,
        dim_mult=[1, 1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, 0.0, -0.1, 0.2],
        latents_std=[1.0, 1.1, 0.9, 1.2],
    ).eval()
    return {"transformer": transformer, "vae": vae, "text_encoder": qwen_vl_encoder(), "scheduler": dynamic_sampler()}


def qwen_vl_encoder() -> Any:
    """Qwen2.5-VL with two layers for words and two for pictures."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    numbers = {mark: 256 + number for number, mark in enumerate(QWEN_VL_MARKS)}
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={
                "vocab_size": 256 + len(QWEN_VL_MARKS),
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 2,
                "rope_parameters": {"mrope_section": [1, 1, 2], "rope_type": "default", "rope_theta": 1e6},
                "bos_token_id": 256,
                "eos_token_id": 258,
            },
            vision_config={
                "depth": 2,
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_heads": 2,
                "out_hidden_size": 16,
                "fullatt_block_indexes": [1],
            },
            image_token_id=numbers["<|image_pad|>"],
            video_token_id=numbers["<|video_pad|>"],
            vision_start_token_id=numbers["<|vision_start|>"],
            vision_end_token_id=numbers["<|vision_end|>"],
        )
    ).eval()


def qwen_processor() -> Any:
    """Qwen2-VL's own, which cannot be made as a whole without torchvision, saved under its own name."""
    from transformers import Qwen2VLImageProcessorPil, Qwen2VLProcessor

    class Qwen2VLProcessorOfPictures(Qwen2VLProcessor):  # type: ignore[misc]
        def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **rest: Any) -> None:
            super().__init__(image_processor, tokenizer, None, chat_template=chat_template)

    Qwen2VLProcessorOfPictures.__name__ = "Qwen2VLProcessor"
    Qwen2VLProcessorOfPictures.__module__ = Qwen2VLProcessor.__module__
    images = Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=56 * 56)
    return Qwen2VLProcessorOfPictures(images, qwen_tokenizer(QWEN_VL_MARKS), chat_template=CHAT_TEMPLATE)


def t5_tokenizer() -> Any:
    """One token a printable character."""
    from transformers import T5Tokenizer

    marks = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
    letters = [(chr(code), -3.0) for code in range(33, 127)]
    return T5Tokenizer(vocab=marks + letters, extra_ids=0, model_max_length=512)


def gemma_tokenizer() -> Any:
    """One token a printable character, and one a byte for the others."""
    from transformers import GemmaTokenizer

    words = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "\u2581", *map(chr, range(33, 127))]
    words += [f"<0x{byte:02X}>" for byte in range(256)]
    return GemmaTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=8192)


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
