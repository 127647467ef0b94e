"""How a variation is made of a picture alone -> by which adapter, exactly."""

import asyncio
from dataclasses import replace

from common.errors import EngineFailed
from node.engines.base import ImagePromptUse, Method, RunSpec
from node.extras import Sha256
from node.image_prompts import ImagePrompt


async def with_image_prompt(spec: RunSpec, prompt: ImagePrompt | None, sha256: Sha256) -> RunSpec:
    """The spec with its adapter, where its method is of that kind. Raises: EngineFailed: a file cannot be read."""
    if spec.method is not Method.IMAGE_PROMPT or prompt is None:
        return spec
    adapter, encoder = prompt.places
    try:
        # In a thread: the first use of a file reads it whole.
        hashes = [await asyncio.to_thread(sha256.of, place.path) for place in (adapter, encoder)]
    except OSError as error:
        raise EngineFailed(f"The file of an image adapter cannot be read ({error.strerror}).") from None
    return replace(spec, image_prompt=ImagePromptUse(adapter.name, hashes[0], encoder.name, hashes[1]))
