"""Pictures of a picture that is still being made.

A preview shows what the model expects the end to be (the denoised estimate that a solver computes at each step), not the
noise that is left; so previews come closer to the picture from one to the next.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from node.engines.base import OnPreview, RunSpec

Decode = Callable[[Any, torch.Tensor, RunSpec], Image.Image]
"""FamilyCalls.decode: a pipeline, latents of one picture as the sampler holds them, and the run -> RGB of `drawn`."""


@dataclass(frozen=True, slots=True)
class Watching:
    """Who looks on, and by which autoencoder."""

    on_preview: OnPreview
    decode: Decode


class Previews:
    """For one picture: watches the solver of its pass, and decodes at the right steps."""

    def __init__(self, spec: RunSpec, watching: Watching, finish: Callable[[Image.Image], Image.Image], row: int = 0) -> None:
        """finish: what is done to a decoded picture before anyone sees it (cut, kept outside the mask).

        row: where the picture stands in a pass of several.
        """
        self._at = spec.preview_steps
        self._watching = watching
        self._spec = spec
        self._finish = finish
        self._row = row
        self._estimate: torch.Tensor | None = None

    def watch(self, sampler: Any) -> None:
        """Note the estimate of each step of this solver object, which is of this pass alone."""
        if not self._at:
            return
        step = sampler.step

        # `wraps` keeps the signature, which pipelines inspect.
        @functools.wraps(step)
        def watched(*args: Any, **kwargs: Any) -> Any:
            result = step(*args, **kwargs)
            values = result if isinstance(result, tuple) else tuple(result.values())
            # Solvers that give no estimate are shown as they stand: noisier, but no lie.
            estimates = values[1] if len(values) > 1 and torch.is_tensor(values[1]) else values[0]
            self._estimate = estimates[self._row : self._row + 1]
            return result

        sampler.step = watched

    def after(self, pipeline: Any, done: int) -> None:
        """Called when `done` steps are made: sends a preview if one is due."""
        index = self._at.pop(done, None)
        if index is not None and self._estimate is not None:
            picture = self._watching.decode(pipeline, self._estimate, self._spec)
            self._watching.on_preview(index, self._finish(picture))
