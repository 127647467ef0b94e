"""Prompts that were read before: clients ask in series, and of few-step pictures the text encoder takes a good part.

One cache for every model of an engine, bounded in bytes, the least recently used leave first. Embeddings are kept in main
memory, where they take nothing from the device, and copied to it anew for each run, so that no run can change another's.
What decides an embedding is in its key, or empties the cache: the weights of a model do when it is unloaded.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import Any

import torch

from node.engines.base import RunSpec
from node.engines.prompts import Prompt
from node.masks import Canvas

MAX_BYTES = 256 * 1024**2
"""Some 400 prompts of SDXL in 16 bits with their negative ones, or 60 of FLUX.1."""


def prompt_key(spec: RunSpec) -> Hashable:
    """What decides the embeddings of a run, beside the loaded model: its texts, whether and how it is guided, its LoRAs.

    LoRAs may lie on the text encoder, so all of them are in the key; those at scale 0 change nothing.
    """
    loras = tuple((use.sha256, use.scale) for use in spec.loras if use.scale)
    return (spec.model, spec.prompt, spec.negative_prompt, spec.guidance, spec.true_cfg_scale, loras)


@dataclass(frozen=True, slots=True)
class _Kept:
    prompt: Prompt
    size_bytes: int


class PromptCache:
    """Read prompts by their keys, for one device."""

    def __init__(self, device: torch.device, max_bytes: int = MAX_BYTES) -> None:
        self._device = device
        self._max_bytes = max_bytes
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()
        self.size_bytes = 0
        """Of everything kept."""

    def get(self, spec: RunSpec, canvas: Canvas | None, read: Callable[[], Prompt]) -> Prompt:
        """The prompt of a run: kept, or read now. Beside pictures that an encoder may look at it is read each time."""
        if canvas is not None and canvas.sources:
            return read()
        key = prompt_key(spec)
        if key in self._kept:
            self._kept.move_to_end(key)
            return _copied(self._kept[key].prompt, self._device)
        prompt = read()
        self._keep(key, prompt)
        return prompt

    def forget(self, model: str) -> None:
        """Drop what a model read: its weights may be others the next time."""
        for key in [key for key, kept in self._kept.items() if isinstance(key, tuple) and key[0] == model]:
            self.size_bytes -= self._kept.pop(key).size_bytes

    def _keep(self, key: Hashable, prompt: Prompt) -> None:
        size_bytes = sum(tensor.nbytes for tensor in _tensors(prompt))
        if size_bytes > self._max_bytes:
            return
        while self.size_bytes + size_bytes > self._max_bytes:
            _, oldest = self._kept.popitem(last=False)
            self.size_bytes -= oldest.size_bytes
        self._kept[key] = _Kept(_copied(prompt, torch.device("cpu")), size_bytes)
        self.size_bytes += size_bytes


def _tensors(prompt: Prompt) -> list[torch.Tensor]:
    values = [each for value in prompt.arguments.values() for each in (value if isinstance(value, list) else [value])]
    return [value for value in values if torch.is_tensor(value)]


def _copied(prompt: Prompt, device: torch.device) -> Prompt:
    """The same numbers in tensors of their own."""
    return replace(prompt, arguments={name: _copy(value, device) for name, value in prompt.arguments.items()})


def _copy(value: Any, device: torch.device) -> Any:
    if isinstance(value, list):
        return [_copy(each, device) for each in value]
    return value.detach().to(device, copy=True) if torch.is_tensor(value) else value
