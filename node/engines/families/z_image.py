"""Z-Image."""

from typing import Any

from node.engines.base import RunSpec
from node.engines.families.base import FlowCalls
from node.masks import Canvas


class ZImage(FlowCalls):
    """Z-Image, whose prompts are a chat with Qwen3."""

    def encode(self, pipeline: Any, spec: RunSpec, canvas: Canvas | None) -> dict[str, Any]:
        guided = spec.guidance > 1
        plain, unwanted = pipeline.encode_prompt(
            spec.prompt,
            device=pipeline._execution_device,
            do_classifier_free_guidance=guided,
            negative_prompt=spec.negative_prompt or None,
        )
        return {"prompt_embeds": plain} | ({"negative_prompt_embeds": unwanted} if guided else {})

    def read_tokens(self, pipeline: Any, prompt: str, tokens: int) -> int:
        # As the pipeline itself does before it cuts at 512.
        wrapped = pipeline.tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=True
        )
        return len(pipeline.tokenizer(wrapped).input_ids)
