"""Stability's families."""

from threading import RLock
from typing import Any, ClassVar

import torch
from PIL import Image

from node.engines.base import RunSpec
from node.engines.families.base import FamilyCalls, FlowCalls
from node.masks import Canvas
from node.pipeline_classes import NOT_LOADED

_WIDENED = RLock()
"""Held while an autoencoder is wider than it was loaded."""


class StableDiffusion15(FamilyCalls):
    """SD 1.5."""

    load_options: ClassVar[dict[str, Any]] = dict.fromkeys(NOT_LOADED) | {"requires_safety_checker": False}
    single_file_options: ClassVar[dict[str, Any]] = {"safety_checker": None, "requires_safety_checker": False}

    def sharing_options(self, pipeline: Any) -> dict[str, Any]:
        return {"requires_safety_checker": False}

    def encode(self, pipeline: Any, spec: RunSpec, canvas: Canvas | None) -> dict[str, Any]:
        # diffusers guides above 1 only, and encodes no negative prompt below.
        guided = spec.guidance > 1
        plain, unwanted = pipeline.encode_prompt(
            spec.prompt,
            device=pipeline._execution_device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=guided,
            negative_prompt=spec.negative_prompt or None,
        )
        return {"prompt_embeds": plain} | ({"negative_prompt_embeds": unwanted} if guided else {})


class StableDiffusionXL(FamilyCalls):
    """SDXL."""

    load_options: ClassVar[dict[str, Any]] = {"feature_extractor": None, "image_encoder": None, "add_watermarker": False}
    single_file_options = load_options

    def sharing_options(self, pipeline: Any) -> dict[str, Any]:
        # None, their default, puts an invisible watermark into every picture where the library for it happens to be.
        return {"add_watermarker": False, "force_zeros_for_empty_prompt": pipeline.config.force_zeros_for_empty_prompt}

    def encode(self, pipeline: Any, spec: RunSpec, canvas: Canvas | None) -> dict[str, Any]:
        guided = spec.guidance > 1
        plain, unwanted, pooled, unwanted_pooled = pipeline.encode_prompt(
            spec.prompt,
            device=pipeline._execution_device,
            num_images_per_prompt=1,
            do_classifier_free_guidance=guided,
            # Absent, not empty: SDXL's own default is a negative embedding of zeros, which is not that of "".
            negative_prompt=spec.negative_prompt or None,
        )
        embeddings = {"prompt_embeds": plain, "pooled_prompt_embeds": pooled}
        if guided:
            embeddings |= {"negative_prompt_embeds": unwanted, "negative_pooled_prompt_embeds": unwanted_pooled}
        return embeddings

    def decode(self, pipeline: Any, latents: torch.Tensor, spec: RunSpec) -> Image.Image:
        """Its autoencoder overflows in half precision (`force_upcast`): the pipeline widens it for the time of a decode."""
        vae = pipeline.vae
        if vae.dtype != torch.float16 or not vae.config.force_upcast:
            return super().decode(pipeline, latents, spec)
        # A preview and a finished picture may be decoded by two threads.
        with _WIDENED:
            # Not its own `to`, which warns at every call.
            torch.nn.Module.to(vae, torch.float32)
            try:
                return super().decode(pipeline, latents, spec)
            finally:
                torch.nn.Module.to(vae, torch.float16)

    def unscaled(self, vae: Any, latents: torch.Tensor) -> torch.Tensor:
        """Those of Playground 2.5 have a mean and a deviation of their own by channel."""
        # The tiny autoencoder of previews knows no such thing.
        told = [vae.config.get(each) for each in ("latents_mean", "latents_std")]
        if None in told:
            return super().unscaled(vae, latents)
        factor: float = vae.config.scaling_factor
        mean, deviation = (torch.tensor(each).view(1, -1, 1, 1).to(latents) for each in told)
        return latents * deviation / factor + mean


class StableDiffusion3(FlowCalls):
    """SD 3 and 3.5: two CLIPs and T5."""

    load_options: ClassVar[dict[str, Any]] = {"image_encoder": None, "feature_extractor": None}
    tokenizer = "tokenizer_3"

    def encode(self, pipeline: Any, spec: RunSpec, canvas: Canvas | None) -> dict[str, Any]:
        guided = spec.guidance > 1
        plain, unwanted, pooled, unwanted_pooled = pipeline.encode_prompt(
            spec.prompt,
            None,
            None,
            device=pipeline._execution_device,
            do_classifier_free_guidance=guided,
            negative_prompt=spec.negative_prompt,
        )
        embeddings = {"prompt_embeds": plain, "pooled_prompt_embeds": pooled}
        if guided:
            embeddings |= {"negative_prompt_embeds": unwanted, "negative_pooled_prompt_embeds": unwanted_pooled}
        return embeddings
