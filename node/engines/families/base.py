"""What every family must say of its pipelines, with the answer most of them give."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image

from node.engines.base import EngineFailed, Method, RunSpec
from node.masks import OPAQUE, Canvas, padded


class FamilyCalls(ABC):
    """The arguments of one family's pipelines: at loading, at encoding, for a run, and for its previews."""

    load_options: ClassVar[dict[str, Any]] = {}
    """Arguments of `from_pretrained` beside the common ones."""
    single_file_options: ClassVar[dict[str, Any]] = {}
    """Arguments of the pipeline's `from_single_file`, where whole pipelines come as one file."""
    tokenizer: ClassVar[str] = "tokenizer"
    """The component that decides how much of a prompt is read."""
    masks: ClassVar[dict[str, str]] = {}
    """Embeddings that may be of any length -> the argument that masks what is behind the end of a shorter one."""

    def own_components(self, folder: Path) -> dict[str, Any]:
        """Components of a diffusers folder that are loaded here instead of by diffusers."""
        return {}

    def sharing_options(self, pipeline: Any) -> dict[str, Any]:
        """Arguments of a second pipeline over the components of this one, beside them."""
        return {}

    @abstractmethod
    def encode(self, pipeline: Any, spec: RunSpec, canvas: Canvas | None) -> dict[str, Any]:
        """The prompt as the arguments of a call. canvas: for encoders that look at the sources as well."""

    def guidance(self, spec: RunSpec) -> dict[str, Any]:
        """Guidance as the arguments of a call."""
        return {"guidance_scale": spec.guidance}

    def start(self, spec: RunSpec, canvas: Canvas | None) -> dict[str, Any]:
        """The arguments that say where a run starts: at noise of a size, at a picture, or at one within a mask."""
        size = {"width": spec.drawn.width_px, "height": spec.drawn.height_px}
        if spec.method in (Method.TEXT_TO_IMAGE, Method.IMAGE_PROMPT):
            return size
        if canvas is None:
            raise EngineFailed(f"The method {spec.method} needs an input.")
        if spec.method is Method.EDIT:
            return size | {"image": list(canvas.sources)}
        start = padded(canvas, spec.drawn)
        # diffusers refuses a strength of which no step is left; that case never comes here.
        inputs: dict[str, Any] = {"image": start.picture, "strength": spec.strength}
        if spec.method is Method.INPAINT:
            # Where nothing is marked the whole picture is: callers choose the method by the mask.
            inputs |= size | {"mask_image": start.repaint or Image.new("L", start.picture.size, OPAQUE)}
        return inputs

    def read_tokens(self, pipeline: Any, prompt: str, tokens: int) -> int:
        """Tokens the encoder is given for a prompt of `tokens`: more where a family wraps it in a template."""
        return tokens

    def decode(self, pipeline: Any, latents: torch.Tensor, spec: RunSpec) -> Image.Image:
        """Latents of one picture as the sampler holds them -> RGB of `spec.drawn`, as the pipeline does at its end."""
        vae = pipeline.vae
        return as_picture(pipeline, vae.decode(self.unscaled(vae, latents.to(vae.dtype)), return_dict=False)[0])

    def unscaled(self, vae: Any, latents: torch.Tensor) -> torch.Tensor:
        """Latents as the autoencoder made them."""
        unscaled: torch.Tensor = latents / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
        return unscaled


class FlowCalls(FamilyCalls):
    """Families of flow matching. Their pipelines that start from a picture draw a size of their own unless it is said."""

    def start(self, spec: RunSpec, canvas: Canvas | None) -> dict[str, Any]:
        inputs = super().start(spec, canvas) | {"width": spec.drawn.width_px, "height": spec.drawn.height_px}
        if spec.strength is not None and spec.forwards < spec.steps:
            # They round the steps that are left out down, where SD rounds the steps that are made down; half a step less
            # asked for is the number told, and equal for all.
            inputs["strength"] = (spec.forwards - 0.5) / spec.steps
        return inputs


def as_picture(pipeline: Any, decoded: torch.Tensor) -> Image.Image:
    """What an autoencoder gave (1, 3, height, width), -1..1, as RGB."""
    picture: Image.Image = pipeline.image_processor.postprocess(decoded, output_type="pil")[0]
    return picture
