"""The bare pipeline: what a script of ten lines makes of a checkpoint, beside which a node is measured."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import diffusers
import torch
import transformers

from common.images_api import OutputFormat
from common.pictures import encode
from node.engines.samplers import make_sampler

if TYPE_CHECKING:
    from node.models import Model

PROMPT = "a large red circle on the left, on a blue background"


@dataclass(frozen=True, slots=True)
class Work:
    """One picture, as both sides make it."""

    width_px: int
    height_px: int
    steps: int
    guidance: float
    sampler: str = "checkpoint"
    prompt: str = PROMPT

    def body(self, model: str, seed: int, **more: Any) -> dict[str, Any]:
        """As a request to a node."""
        return {
            "model": model,
            "prompt": self.prompt,
            "width": self.width_px,
            "height": self.height_px,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "sampler": self.sampler,
            "seed": seed,
        } | more


class Bare:
    """diffusers' own pipeline of a model on a device."""

    def __init__(self, model: "Model", kind: str) -> None:
        for library in (diffusers, transformers):
            library.utils.logging.set_verbosity_error()
            library.utils.logging.disable_progress_bar()
        self._pipeline: Any = diffusers.DiffusionPipeline.from_pretrained(
            model.checkpoint.path,
            dtype=getattr(torch, model.dtype(kind, "auto")),
            use_safetensors=True,
            local_files_only=True,
            variant=model.checkpoint.variant,
        ).to(kind)
        self._pipeline.set_progress_bar_config(disable=True)
        self._sampler = self._pipeline.scheduler

    def paint(self, work: Work, seed: int, batch: int = 1) -> list[bytes]:
        """Pictures from a seed on, in one call, as PNG."""
        self._pipeline.scheduler = make_sampler(work.sampler, self._sampler, None)
        pictures = self._pipeline(
            [work.prompt] * batch,
            width=work.width_px,
            height=work.height_px,
            num_inference_steps=work.steps,
            guidance_scale=work.guidance,
            generator=[torch.Generator().manual_seed(seed + number) for number in range(batch)],
        ).images
        return [encode(picture, output_format=OutputFormat.PNG) for picture in pictures]
