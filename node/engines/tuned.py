"""How a loaded pipeline computes: memory format, attention, compiled blocks; and what is told of each."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from diffusers.models.attention_dispatch import attention_backend

from node.engines.base import Method, RunSpec
from node.engines.compiled_blocks import CompiledBlocks
from node.presets import StepCache
from node.tuning import Tuning

_ATTENTION = {"cudnn": "_native_cudnn", "flash": "flash", "flash3": "_flash_3", "xformers": "xformers"}
"""diffusers' names. Those that compute with fewer bits (sage) are not among them: they change pictures."""


class Tuned:
    """The tuning of one loaded pipeline."""

    def __init__(self, pipeline: Any, denoiser: Any, tuning: Tuning, device: str, *, backend: str | Callable[..., Any]) -> None:
        """backend: of torch.compile. The pipeline is on its device."""
        half = next(denoiser.parameters()).dtype != torch.float32
        self._told = {
            "channels_last": _channels_last(pipeline, denoiser, tuning, fast=device == "cuda" and half),
            "attention": _attention(denoiser, tuning),
        }
        self._blocks: CompiledBlocks | None = None
        if tuning.compile == "off":
            self._told["compile"] = "off: by setting"
        elif tuning.compile == "auto" and device != "cuda":
            self._told["compile"] = f"off: not worth its minutes on {device}"
        else:
            self._blocks = CompiledBlocks(denoiser, backend=backend)

    @property
    def told(self) -> dict[str, str]:
        """What came of each setting, for people."""
        return self._told | ({} if self._blocks is None else {"compile": self._blocks.state})

    def running(self, spec: RunSpec, cache: StepCache | None) -> AbstractContextManager[None]:
        """For the length of a run, which takes compiled blocks unless it has something within the blocks."""
        within = any(each.scale for each in spec.loras) or spec.method is Method.IMAGE_PROMPT
        if self._blocks is None or within:
            return nullcontext()
        return self._blocks.running() if cache is None or cache.cache == "deep" else nullcontext()

    def close(self) -> None:
        """Let go of the pipeline."""
        if self._blocks is not None:
            self._blocks.close()


def _channels_last(pipeline: Any, denoiser: Any, tuning: Tuning, *, fast: bool) -> str:
    if not any(isinstance(module, torch.nn.Conv2d) and module.kernel_size != (1, 1) for module in denoiser.modules()):
        return "off: no UNet"
    if tuning.channels_last == "off":
        return "off: by setting"
    if tuning.channels_last == "auto" and not fast:
        return "off: pays on cuda with half precision"
    for part in (denoiser, pipeline.vae):
        part.to(memory_format=torch.channels_last)
    return "on"


def _attention(denoiser: Any, tuning: Tuning) -> str:
    name = _ATTENTION.get(tuning.attention)
    if name is None:
        return "native"
    if not any(hasattr(getattr(module, "processor", None), "_attention_backend") for module in denoiser.modules()):
        return f"native: this denoiser has no choice, {tuning.attention} is without effect"
    try:
        # Within the block that puts the process's own default back: setting one on a model sets that as well.
        with attention_backend("native"):
            denoiser.set_attention_backend(name)
    except (RuntimeError, ValueError, ImportError) as error:
        print(f"attention {tuning.attention} is not to be had: {str(error)[:200]}", file=sys.stderr, flush=True)
        return f"native: {tuning.attention} is not to be had here"
    return tuning.attention
