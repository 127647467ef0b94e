"""Qwen-Image and its editing siblings, whose text encoder sees pictures."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit import calculate_dimensions
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import CONDITION_IMAGE_SIZE
from PIL import Image
from transformers import Qwen2VLProcessor

from node.engines.base import EngineFailed, RunSpec
from node.engines.families.base import FlowCalls, as_picture
from node.masks import Canvas

EDIT_PIXELS = 1024 * 1024
"""Area the first editing model sees its picture at, the same for encoder and transformer (its pipeline)."""
READ_TOKENS = 1024
"""Tokens of a prompt that QwenImagePipeline reads at most."""


class PicturesOnlyProcessor(Qwen2VLProcessor):  # type: ignore[misc]
    """Qwen2-VL's processor without its half for videos, which alone needs torchvision."""

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, chat_template: Any = None, **rest: Any) -> None:
        super().__init__(image_processor, tokenizer, None, chat_template=chat_template)


class QwenImage(FlowCalls):
    """Qwen-Image: all of its guidance is classifier-free, and called `true_cfg_scale` there."""

    masks: ClassVar[dict[str, str]] = {name: f"{name}_mask" for name in ("prompt_embeds", "negative_prompt_embeds")}

    def encode(self, pipeline: Any, spec: RunSpec, canvas: Canvas | None) -> dict[str, Any]:
        options = self._seen(pipeline, canvas) | {"device": pipeline._execution_device, "max_sequence_length": READ_TOKENS}
        plain, mask = pipeline.encode_prompt(prompt=spec.prompt, **options)
        embeddings = {"prompt_embeds": plain, "prompt_embeds_mask": mask}
        if spec.guidance > 1:
            # Without any negative prompt it does not guide; its model card says " ".
            unwanted, mask = pipeline.encode_prompt(prompt=spec.negative_prompt or " ", **options)
            embeddings |= {"negative_prompt_embeds": unwanted, "negative_prompt_embeds_mask": mask}
        return embeddings

    def _seen(self, pipeline: Any, canvas: Canvas | None) -> dict[str, Any]:
        """What the text encoder is shown beside the prompt."""
        return {}

    def guidance(self, spec: RunSpec) -> dict[str, Any]:
        return {"true_cfg_scale": spec.guidance}

    def read_tokens(self, pipeline: Any, prompt: str, tokens: int) -> int:
        # The pipeline cuts the whole chat, and drops its own beginning afterwards.
        chat = pipeline.tokenizer(pipeline.prompt_template_encode.format(prompt)).input_ids
        return len(chat) - int(pipeline.prompt_template_encode_start_idx)

    def decode(self, pipeline: Any, latents: torch.Tensor, spec: RunSpec) -> Image.Image:
        vae, size = pipeline.vae, spec.drawn
        unpacked = pipeline._unpack_latents(latents, size.height_px, size.width_px, pipeline.vae_scale_factor).to(vae.dtype)
        mean, deviation = (
            torch.tensor(values).view(1, -1, 1, 1, 1).to(unpacked)
            for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        # Division by the reciprocal, as the pipeline has it: the same bits. A picture is a video of one frame there.
        frames = vae.decode(unpacked / (1.0 / deviation) + mean, return_dict=False)[0]
        return as_picture(pipeline, frames[:, :, 0])


class QwenImageEdit(QwenImage):
    """Qwen-Image-Edit: one picture."""

    def own_components(self, folder: Path) -> dict[str, Any]:
        return {"processor": PicturesOnlyProcessor.from_pretrained(folder / "processor", local_files_only=True)}

    def _seen(self, pipeline: Any, canvas: Canvas | None) -> dict[str, Any]:
        (source,) = sources_of(canvas)
        width_px, height_px, _ = calculate_dimensions(EDIT_PIXELS, source.width / source.height)
        return {"image": pipeline.image_processor.resize(source, height_px, width_px)}

    def read_tokens(self, pipeline: Any, prompt: str, tokens: int) -> int:
        # These pipelines cut nothing.
        return tokens


class QwenImageEditPlus(QwenImageEdit):
    """Qwen-Image-Edit-2509 and later: several pictures, called Picture 1, Picture 2 ... in their order."""

    def _seen(self, pipeline: Any, canvas: Canvas | None) -> dict[str, Any]:
        seen = []
        for source in sources_of(canvas):
            width_px, height_px, _ = calculate_dimensions(CONDITION_IMAGE_SIZE, source.width / source.height)
            seen.append(pipeline.image_processor.resize(source, height_px, width_px))
        return {"image": seen}


def sources_of(canvas: Canvas | None) -> tuple[Image.Image, ...]:
    """The pictures to look at. Raises: EngineFailed: there are none."""
    if canvas is None or not canvas.sources:
        raise EngineFailed("This model needs a picture to edit.")
    return canvas.sources
