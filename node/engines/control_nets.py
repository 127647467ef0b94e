"""ControlNets of a loaded pipeline: brought in when a run names them, and a pipeline for that run over the same components.

Nothing of the loaded pipeline is changed: a run without them takes the very path it took before any was loaded. Those of
the last run that had any stay, for the next is most likely to want them again.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from accelerate import init_empty_weights
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from node.control_classes import CONTROL_CLASSES
from node.control_net_classes import NETS, NetClass
from node.controls import inspect_control
from node.diffusers_folder import read_json
from node.engines.base import ControlMismatch, ControlUse, EngineFailed, LoadOrder, Method, RunSpec
from node.masks import Canvas, padded
from node.pipeline_classes import class_of

SHOWN = 5
"""Tensors named in an error; the number of all is told."""
_EMBEDDING = "controlnet_cond_embedding"


class ControlNets:
    """Those of one pipeline."""

    def __init__(self, order: LoadOrder, pipeline: Any, device: torch.device) -> None:
        self._order = order
        self._denoiser: Any = getattr(pipeline, class_of(order.checkpoint.family).denoiser)
        self._device = device
        self._places = {place.name: place for place in order.controls}
        self._loaded: dict[str, Any] = {}
        """By the sha256 of the file."""

    def guided(self, pipeline: Any, spec: RunSpec, sharing_options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The pipeline a run goes through, and what it is called with beside the usual; one of scale 0 is left out.

        pipeline: the one of the run's method, whose components are shared.
        Raises: ControlMismatch, CheckpointRefused, OSError.
        """
        uses = [use for use in spec.controls if use.scale]
        if not uses:
            return pipeline, {}
        family = self._order.checkpoint.family
        name = CONTROL_CLASSES.get(family, {}).get(spec.method)
        if name is None:
            raise EngineFailed(f"The model {self._order.model!r} has no pipeline for {spec.method} guided by a ControlNet.")
        kind = NETS[family]
        if len(uses) > 1 and not kind.several:
            raise EngineFailed(f"The model {self._order.model!r} is guided by one ControlNet at a time.")
        nets = self._have(uses, kind)
        made = getattr(diffusers, name)(
            **pipeline.components, controlnet=nets[0] if len(nets) == 1 else nets, **sharing_options
        )
        made.set_progress_bar_config(disable=True)
        return made, _inputs(uses, spec, kind)

    def _have(self, uses: list[ControlUse], kind: NetClass) -> list[Any]:
        # First those that are not wanted leave: the memory of both was never promised.
        self._loaded = {use.sha256: self._loaded[use.sha256] for use in uses if use.sha256 in self._loaded}
        for use in uses:
            if use.sha256 not in self._loaded:
                self._loaded[use.sha256] = self._load(use, kind)
        return [self._loaded[use.sha256] for use in uses]

    def _load(self, use: ControlUse, kind: NetClass) -> Any:
        place = self._places.get(use.name)
        if place is None:
            raise EngineFailed(f"The ControlNet {use.name!r} is not known to the worker.", retryable=True)
        file = inspect_control(place)
        dtype, read = getattr(torch, self._order.dtype), load_file(file.path)
        try:
            named = read if kind.needs_config else _in_diffusers_names(read, self._denoiser)
            tensors = {name: tensor.to(dtype) for name, tensor in named.items()}
            # Without memory for weights that are about to be replaced; what is computed from sizes alone is no weight.
            with init_empty_weights(include_buffers=False):
                net = _like(self._denoiser, tensors) if file.config is None else _configured(kind, file.config)
        except Exception as error:
            # The converter was written for well-formed files and fails in as many ways as there are others.
            raise ControlMismatch(
                f"The ControlNet {use.name!r} is not in a form that can be read ({type(error).__name__})."
            ) from error
        self._check(use.name, net, tensors, kind)
        net.load_state_dict(tensors, strict=True, assign=True)
        return net.eval().to(self._device)

    def _check(self, name: str, net: Any, tensors: Mapping[str, Tensor], kind: NetClass) -> None:
        """Raises: ControlMismatch: its tensors are not those of the net, or the net's sides do not meet the model's."""
        wanted = {key: tensor.shape for key, tensor in net.state_dict().items()}
        wrong = sorted(
            key for key in wanted.keys() | tensors.keys() if key not in tensors or wanted.get(key) != tensors[key].shape
        )
        ours, theirs = self._denoiser.config, net.config
        if not wrong and any(theirs[side] not in (None, ours[side]) for side in kind.sides):
            wrong = ["config"]
        if wrong:
            shown = ", ".join(wrong[:SHOWN]) + (", ..." if len(wrong) > SHOWN else "")
            raise ControlMismatch(
                f"The ControlNet {name!r} does not fit the model {self._order.model!r}: "
                f"{len(wrong)} of its tensors have no counterpart of the same shape ({shown})."
            )


def _in_diffusers_names(tensors: dict[str, Tensor], unet: Any) -> dict[str, Tensor]:
    converted: dict[str, Tensor] = convert_controlnet_checkpoint(tensors, unet.config)
    # SDXL's sizes: the library's converter leaves them out.
    for layer, place in (("linear_1", "0.0"), ("linear_2", "0.2")):
        for part in ("weight", "bias"):
            for prefix in ("control_model.", ""):
                if (tensor := tensors.get(f"{prefix}label_emb.{place}.{part}")) is not None:
                    converted[f"add_embedding.{layer}.{part}"] = tensor
    return converted


def _like(unet: Any, tensors: Mapping[str, Tensor]) -> Any:
    """An empty ControlNet for a UNet. Files hold no config; what the UNet does not say is read off the shapes."""
    blocks = sum(name.startswith(f"{_EMBEDDING}.blocks.") and name.endswith(".weight") for name in tensors)
    layers = ["conv_in", *(f"blocks.{place}" for place in range(1, blocks, 2))]
    widths = tuple(tensors[f"{_EMBEDDING}.{layer}.weight"].shape[0] for layer in layers)
    return diffusers.ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=widths, load_weights_from_unet=False)


def _configured(kind: NetClass, config: Path) -> Any:
    return getattr(diffusers, kind.name).from_config(read_json(config))


def _inputs(uses: list[ControlUse], spec: RunSpec, kind: NetClass) -> dict[str, Any]:
    """The arguments of a guided call. Several ControlNets take lists; one alone takes no list."""
    pictures = [_drawn(use, spec) for use in uses]
    columns: dict[str, list[Any]] = {
        kind.image_from_noise if spec.method in (Method.TEXT_TO_IMAGE, Method.IMAGE_PROMPT) else "control_image": pictures,
        "controlnet_conditioning_scale": [use.scale for use in uses],
        "control_guidance_start": [use.start for use in uses],
        "control_guidance_end": [use.end for use in uses],
    }
    size = {"width": spec.drawn.width_px, "height": spec.drawn.height_px}
    return size | {name: values if len(uses) > 1 else values[0] for name, values in columns.items()}


def _drawn(use: ControlUse, spec: RunSpec) -> Image.Image:
    if use.picture is None:
        raise EngineFailed(f"The ControlNet {use.name!r} has no picture.")
    return padded(Canvas(use.picture, None), spec.drawn).picture
