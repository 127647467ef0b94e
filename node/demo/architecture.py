"""The parts of the demonstration pipeline, untrained, and how trained parts become a folder.

All classes are the real ones of diffusers and transformers, so whatever loads a Stable Diffusion checkpoint loads this.
"""

import os
from pathlib import Path
from typing import Any

import torch

TEXT_WIDTH = 128
TEXT_TOKENS = 77


def autoencoder() -> Any:
    """AutoencoderKL f8 with 4 latent channels: 0.9 M weights. (B, 3, H, W) in -1..1 <-> (B, 4, H/8, W/8).

    No attention in the middle: flat shapes do not need it, and at 1024x1024 it alone would cost more than all the rest.
    One normalisation group: each group loses its mean, so many small groups lose the colour of a flat ground.
    """
    from diffusers import AutoencoderKL

    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(16, 32, 64, 64),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=1,
        sample_size=256,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )
    _start_nearly_linear(vae)
    return vae


def _start_nearly_linear(vae: torch.nn.Module) -> None:
    """Begin with residual branches that add nothing, and convolutions that keep the variance.

    Without skips from encoder to decoder the default start passes almost no signal: measured here, 250 steps from this
    one leave a third of the error that they leave from the default.
    """
    for name, module in vae.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            if name.endswith(".conv2"):
                torch.nn.init.zeros_(module.weight)
            else:
                torch.nn.init.kaiming_normal_(module.weight, nonlinearity="linear")


def text_encoder(vocabulary: int) -> Any:
    """CLIPTextModel: (B, 77) token ids -> (B, 77, 128)."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_attention_heads=4,
            num_hidden_layers=2,
            projection_dim=TEXT_WIDTH,
            max_position_embeddings=TEXT_TOKENS,
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
            pad_token_id=vocabulary - 1,
        )
    )


def unet() -> Any:
    """UNet2DConditionModel: (B, 4, h, w) latents, (B,) timesteps, (B, 77, 128) text -> (B, 4, h, w) velocity.

    Attention starts at the second level (16x16 for a 256 px picture): at the first it would cost more than everything
    else together and, at 1024 px, be quadratic in 16,384 positions.
    """
    from diffusers import UNet2DConditionModel

    velocity = UNet2DConditionModel(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        block_out_channels=(48, 96, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    for name, parameter in velocity.named_parameters():
        # Residual branches and output start at nothing: Dhariwal and Nichol, arXiv:2105.05233, "zero_module".
        if ".conv2." in name or name.startswith("conv_out."):
            torch.nn.init.zeros_(parameter)
    return velocity


def sampler() -> Any:
    """DDIM over velocity with a last noise level of pure noise.

    Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed" (arXiv:2305.08891): without zero terminal
    SNR the mean brightness leaks into training, and a plain black or white ground cannot be painted.
    """
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )


def pipeline(*, autoencoder: Any, text_encoder: Any, tokenizer: Any, unet: Any) -> Any:
    """A StableDiffusionPipeline of these parts."""
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline(
        vae=autoencoder.eval(),
        text_encoder=text_encoder.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=sampler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save(whole: Any, folder: Path) -> None:
    """Write a pipeline as fp16 safetensors in diffusers layout. It becomes fp16 on the way."""
    for part in (whole.vae, whole.text_encoder, whole.unet):
        part.half()
    whole.vae.register_to_config(_name_or_path="")  # else the folder it was loaded from while training
    whole.save_pretrained(folder, safe_serialization=True)


def load(folder: Path, *, device: str = "cpu") -> Any:
    """The pipeline of a folder in fp32, without reading anything from the network."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from diffusers import StableDiffusionPipeline

    return StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, local_files_only=True).to(
        device
    )
