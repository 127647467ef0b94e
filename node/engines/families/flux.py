"""Black Forest Labs' families."""

import math
from typing import Any, ClassVar

import torch
from PIL import Image

from node.engines.base import Method, RunSpec
from node.engines.families.base import FlowCalls, as_picture
from node.masks import Canvas

MEGAPIXEL = 1024 * 1024


class Flux1(FlowCalls):
    """FLUX.1 [dev] and [schnell]: CLIP gives the gist of a prompt, T5 all of it."""

    load_options: ClassVar[dict[str, Any]] = {"image_encoder": None, "feature_extractor": None}
    tokenizer = "tokenizer_2"

    def encode(self, pipeline: Any, spec: RunSpec, canvas: Canvas | None) -> dict[str, Any]:
        # The tokens each was trained with: 512 for [dev], 256 for [schnell].
        options = {"device": pipeline._execution_device, "num_images_per_prompt": 1}
        options["max_sequence_length"] = 512 if pipeline.transformer.config.guidance_embeds else 256
        plain, pooled, _ = pipeline.encode_prompt(spec.prompt, None, **options)
        embeddings = {"prompt_embeds": plain, "pooled_prompt_embeds": pooled}
        if (spec.true_cfg_scale or 0) > 1:
            unwanted, unwanted_pooled, _ = pipeline.encode_prompt(spec.negative_prompt, None, **options)
            embeddings |= {"negative_prompt_embeds": unwanted, "negative_pooled_prompt_embeds": unwanted_pooled}
        return embeddings

    def guidance(self, spec: RunSpec) -> dict[str, Any]:
        return {"guidance_scale": spec.guidance, "true_cfg_scale": spec.true_cfg_scale or 1.0}

    def decode(self, pipeline: Any, latents: torch.Tensor, spec: RunSpec) -> Image.Image:
        height_px, width_px = spec.drawn.height_px, spec.drawn.width_px
        return super().decode(pipeline, pipeline._unpack_latents(latents, height_px, width_px, pipeline.vae_scale_factor), spec)


class Kontext(Flux1):
    """FLUX.1 Kontext [dev]: looks at one picture, at one of the resolutions of a megapixel that it was trained with."""

    def start(self, spec: RunSpec, canvas: Canvas | None) -> dict[str, Any]:
        # Without it a size is only a shape, drawn at a megapixel.
        inputs = super().start(spec, canvas) | {"max_area": spec.drawn.pixels}
        if spec.method is Method.EDIT:
            (inputs["image"],) = inputs["image"]
        if spec.method is Method.INPAINT:
            # This pipeline draws at the size it looks at.
            inputs["_auto_resize"] = False
        return inputs


class Flux2Klein(FlowCalls):
    """FLUX.2 [klein]: a chat with Qwen3, and pictures as they are up to a megapixel each."""

    def sharing_options(self, pipeline: Any) -> dict[str, Any]:
        return {"is_distilled": pipeline.config.is_distilled}

    def encode(self, pipeline: Any, spec: RunSpec, canvas: Canvas | None) -> dict[str, Any]:
        options = {"device": pipeline._execution_device, "num_images_per_prompt": 1}
        plain, _ = pipeline.encode_prompt(spec.prompt, **options)
        if spec.guidance <= 1 or pipeline.config.is_distilled:
            return {"prompt_embeds": plain}
        unwanted, _ = pipeline.encode_prompt(spec.negative_prompt, **options)
        return {"prompt_embeds": plain, "negative_prompt_embeds": unwanted}

    def read_tokens(self, pipeline: Any, prompt: str, tokens: int) -> int:
        # As the pipeline itself does before it cuts at 512.
        chat = pipeline.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return len(pipeline.tokenizer(chat).input_ids)

    def decode(self, pipeline: Any, latents: torch.Tensor, spec: RunSpec) -> Image.Image:
        vae, step_px = pipeline.vae, 2 * pipeline.vae_scale_factor
        height_px, width_px = _drawn_by_klein(spec, step_px)
        patches = latents.permute(0, 2, 1).reshape(1, -1, height_px // step_px, width_px // step_px)
        mean, variance = (each.view(1, -1, 1, 1).to(patches) for each in (vae.bn.running_mean, vae.bn.running_var))
        patches = patches * torch.sqrt(variance + vae.config.batch_norm_eps) + mean
        return as_picture(pipeline, vae.decode(pipeline._unpatchify_latents(patches).to(vae.dtype), return_dict=False)[0])


def _drawn_by_klein(spec: RunSpec, step_px: int) -> tuple[int, int]:
    """Height and width in px: its inpainting takes what it starts from down to a megapixel, and draws that."""
    height_px, width_px = spec.drawn.height_px, spec.drawn.width_px
    if spec.method is not Method.INPAINT or spec.drawn.pixels <= MEGAPIXEL:
        return height_px, width_px
    scale = math.sqrt(MEGAPIXEL / spec.drawn.pixels)
    return int(height_px * scale) // step_px * step_px, int(width_px * scale) // step_px * step_px
