"""Sana."""

import inspect
from typing import Any

from diffusers import SanaPipeline

from node.engines.base import RunSpec
from node.engines.families.base import FlowCalls
from node.masks import Canvas

_INSTRUCTION = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
"""What its encoder is told to do with a prompt; the pipeline has it as a default of its call, not of its encoding."""


class Sana(FlowCalls):
    """Sana, whose prompts are read by Gemma as instructions."""

    def encode(self, pipeline: Any, spec: RunSpec, canvas: Canvas | None) -> dict[str, Any]:
        plain, mask, unwanted, unwanted_mask = pipeline.encode_prompt(
            spec.prompt,
            do_classifier_free_guidance=spec.guidance > 1,
            negative_prompt=spec.negative_prompt,
            device=pipeline._execution_device,
            complex_human_instruction=_INSTRUCTION,
        )
        return {
            # Its call has "" there, and refuses that beside an encoded one.
            "negative_prompt": None,
            "prompt_embeds": plain,
            "prompt_attention_mask": mask,
            "negative_prompt_embeds": unwanted,
            "negative_prompt_attention_mask": unwanted_mask,
        }

    def start(self, spec: RunSpec, canvas: Canvas | None) -> dict[str, Any]:
        # Binning draws at one of its own sizes and resizes that.
        return super().start(spec, canvas) | {"use_resolution_binning": False}
