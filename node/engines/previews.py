"""Pictures of a picture that is still being made.

A preview shows what the model expects the end to be (the denoised estimate that a solver computes at each step), not the
noise that is left; so previews come closer to the picture from one to the next.
"""

import functools
from typing import Any

import torch
from PIL import Image

from node.engines.base import OnPreview, RunSpec


class Previews:
    """For one picture: watches its solver, and decodes at the right steps."""

    def __init__(self, spec: RunSpec, on_preview: OnPreview, finish: Any) -> None:
        """finish: what is done to a decoded picture before anyone sees it (cut, kept outside the mask)."""
        # Evenly over the steps, none at the very end, where the picture itself is about to come.
        count = min(spec.previews, max(0, spec.forwards - 1))
        self._at = {round((index + 1) * spec.forwards / (count + 1)): index for index in range(count)}
        self._on_preview = on_preview
        self._finish = finish
        self._estimate: torch.Tensor | None = None

    def watch(self, sampler: Any) -> None:
        """Note the estimate of each step of this solver object, which is of this picture alone."""
        if not self._at:
            return
        step = sampler.step

        # `wraps` keeps the signature, which pipelines inspect.
        @functools.wraps(step)
        def watched(*args: Any, **kwargs: Any) -> Any:
            result = step(*args, **kwargs)
            values = result if isinstance(result, tuple) else tuple(result.values())
            # Solvers that give no estimate are shown as they stand: noisier, but no lie.
            self._estimate = values[1] if len(values) > 1 and torch.is_tensor(values[1]) else values[0]
            return result

        sampler.step = watched

    def after(self, pipeline: Any, done: int) -> None:
        """Called when `done` steps are made: sends a preview if one is due."""
        index = self._at.pop(done, None)
        if index is not None and self._estimate is not None:
            self._on_preview(index, self._finish(decoded(pipeline, self._estimate)))


def decoded(pipeline: Any, latents: torch.Tensor) -> Image.Image:
    """Latents of one picture (1, channels, height / 8, width / 8) -> RGB, as the pipeline itself does at its end."""
    vae = pipeline.vae
    scaled = latents.to(vae.dtype) / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
    picture: Image.Image = pipeline.image_processor.postprocess(vae.decode(scaled, return_dict=False)[0], output_type="pil")[0]
    return picture
