"""What a request says of LoRAs -> the prompt the model sees, and the files, exactly."""

import asyncio
from collections.abc import Iterable

from common.errors import LoraRefused
from common.images_api import ImageRequest, LoraAsk, asked_for
from node.engines.base import LoraUse
from node.loras import LoraFile, Loras
from node.pipeline_classes import Family


async def with_loras(request: ImageRequest, family: Family, loras: Loras) -> tuple[ImageRequest, tuple[LoraUse, ...]]:
    """The request without tags in its prompt, trigger words put behind it, and the LoRAs it wants.

    Raises: InvalidRequest: too many, or a scale outside the limits; LoraRefused: one that is not here or does not fit.
    """
    prompt, asks = asked_for(request.prompt, request.loras)
    if not asks:
        return request._replace(prompt=prompt), ()
    # In a thread: the first use of a file reads it whole, for its hash.
    chosen = await asyncio.to_thread(_chosen, loras, asks, family)
    words = [word for file, ask, _ in chosen if ask.trigger for word in file.sidecar.trigger_words]
    uses = tuple(LoraUse(file.name, ask.scale, sha256) for file, ask, sha256 in chosen)
    return request._replace(prompt=_with_words(prompt, words)), uses


def _chosen(loras: Loras, asks: Iterable[LoraAsk], family: Family) -> list[tuple[LoraFile, LoraAsk, str]]:
    chosen = loras.choose(tuple(asks), family)
    try:
        return [(file, ask, loras.sha256(file)) for file, ask in chosen]
    except OSError as error:
        raise LoraRefused(f"The file of a LoRA cannot be read ({error.strerror}).") from None


def _with_words(prompt: str, words: Iterable[str]) -> str:
    """The prompt with those of the words behind it that it does not hold yet, as A1111's users write them."""
    for word in words:
        if word.lower() not in prompt.lower():
            prompt = f"{prompt}, {word}" if prompt else word
    return prompt
