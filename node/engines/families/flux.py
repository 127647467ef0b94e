"""Black Forest Labs' families."""

from typing import Any, ClassVar

import torch
from PIL import Image

from node.engines.base import RunSpec
from node.engines.families.base import FlowCalls
from node.masks import Canvas


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
