"""LoRAs on a loaded pipeline: brought in when a run names them, switched off behind it, and kept until they are dropped.

They lie beside the weights and never in them (nothing is merged), so a run without LoRAs takes the very path it took
before any was loaded, bit for bit. All methods share the components, hence the LoRAs as well.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_peft, convert_unet_state_dict_to_peft
from safetensors.torch import load_file
from torch import Tensor

from node.engines.base import EngineFailed, LoadOrder, LoraMismatch, LoraUse
from node.engines.offloading import lifted
from node.extras import Place
from node.loras import inspect_lora

SHOWN = 5
"""Layers named in an error; the number of all is told."""

Layers = Mapping[str, Mapping[str, tuple[Tensor, Tensor]]]
"""component -> path of a module in it -> (down, up)"""


class Adapters:
    """The LoRAs of one pipeline."""

    def __init__(self, order: LoadOrder, pipeline: Any, device: torch.device) -> None:
        self._order = order
        self._device = device
        self._pipeline = pipeline
        self._places = {place.name: place for place in order.loras}
        self._kept: dict[str, int] = {}
        """Number of its layers, by adapter name."""

    @contextmanager
    def applied(self, uses: Sequence[LoraUse]) -> Iterator[dict[str, int]]:
        """Have these LoRAs, and no others, in effect for the length of the block.

        Gives the number of layers each changes. One of scale 0 is left out, for adding nothing is not yet the same bits.
        Raises: LoraMismatch, CheckpointRefused, OSError.
        """
        active = {_adapter(use.sha256): use for use in uses if use.scale}
        layers = dict.fromkeys((use.name for use in uses), 0)
        try:
            for adapter, use in active.items():
                layers[use.name] = self._have(adapter, use)
            if active:
                self._pipeline.enable_lora()
                self._pipeline.set_adapters(list(active), [use.scale for use in active.values()])
            yield layers
        finally:
            if self._kept:
                self._pipeline.disable_lora()

    def drop(self, sha256s: Iterable[str]) -> None:
        """Give their memory back. Those that are not there are fine: the aim is that they are not."""
        for adapter in map(_adapter, sha256s):
            if adapter in self._kept:
                self._drop(adapter)

    def _have(self, adapter: str, use: LoraUse) -> int:
        """Load a LoRA unless it is there; gives the number of its layers."""
        if adapter in self._kept:
            return self._kept[adapter]
        place = self._places.get(use.name)
        if place is None:
            raise EngineFailed(f"The LoRA {use.name!r} is not known to the worker.", retryable=True)
        tensors = self._read(place)
        layers = sum(len(modules) for modules in self._fitting(use.name, tensors).values())
        # Kept from the first, so that one that fails half way leaves nothing behind.
        self._kept[adapter] = layers
        try:
            with lifted(self._pipeline, self._device, self._order.offload):
                self._pipeline.load_lora_weights(tensors, adapter_name=adapter)
        except BaseException:
            self._drop(adapter)
            raise
        if (applied := self._count(adapter)) != layers:
            self._drop(adapter)
            raise LoraMismatch(f"Of the LoRA {use.name!r}, {applied} of {layers} layers can be applied to the model.")
        return layers

    def _read(self, place: Place) -> dict[str, Tensor]:
        """The tensors of a file, in the number format of the model; a scalar (`alpha`) as it is."""
        inspect_lora(place.path, root=place.root, name=place.name)
        dtype = getattr(torch, self._order.dtype)
        return {name: tensor.to(dtype) if tensor.ndim > 1 else tensor for name, tensor in load_file(place.path).items()}

    def _fitting(self, name: str, tensors: dict[str, Tensor]) -> Layers:
        """The layers of a LoRA. Raises: LoraMismatch: some match nothing in the model, by name or by shape."""
        try:
            layers, strangers = _layers(self._pipeline, tensors)
        except Exception as error:
            # The converters were written for well-formed files and fail in as many ways as there are others.
            raise LoraMismatch(f"The LoRA {name!r} is not in a form that can be read ({type(error).__name__}).") from error
        unmatched = list(strangers)
        for component, modules in layers.items():
            known = dict(getattr(self._pipeline, component).named_modules())
            unmatched += [f"{component}.{path}" for path, pair in modules.items() if not _fits(known.get(path), *pair)]
        count = sum(len(modules) for modules in layers.values()) + len(strangers)
        if unmatched or not count:
            shown = ", ".join(sorted(unmatched)[:SHOWN]) + (", ..." if len(unmatched) > SHOWN else "")
            raise LoraMismatch(
                f"The LoRA {name!r} does not fit the model {self._order.model!r}: "
                f"{len(unmatched)} of its {count} layers match nothing in it ({shown})."
            )
        return layers

    def _count(self, adapter: str) -> int:
        """Layers of the model that really hold an adapter."""
        components = [getattr(self._pipeline, name) for name in _components(self._pipeline)]
        return sum(adapter in getattr(module, "lora_A", ()) for each in components for module in each.modules())

    def _drop(self, adapter: str) -> None:
        self._pipeline.delete_adapters(adapter)
        del self._kept[adapter]


def _adapter(sha256: str) -> str:
    """The name a library knows a LoRA by: its content's, so that a file that was replaced is another."""
    return f"x{sha256[:24]}"


def _components(pipeline: Any) -> list[str]:
    names: Sequence[str] = pipeline._lora_loadable_modules
    return [name for name in names if getattr(pipeline, name, None) is not None]


def _layers(pipeline: Any, tensors: dict[str, Tensor]) -> tuple[Layers, list[str]]:
    """What a file changes by component, as diffusers itself will understand it, and keys that belong to no component."""
    options = {"unet_config": pipeline.unet.config} if hasattr(pipeline, "text_encoder_2") and hasattr(pipeline, "unet") else {}
    converted = pipeline.lora_state_dict(dict(tensors), **options)
    # With the alphas beside them, for the families whose files have any.
    state: dict[str, Tensor] = converted[0] if isinstance(converted, tuple) else converted
    components = _components(pipeline)
    owner = {key: next((name for name in components if key.startswith(f"{name}.")), None) for key in state}
    strangers = sorted({_module(key) for key in state if owner[key] is None})
    layers = {}
    for name in components:
        part = {key.removeprefix(f"{name}."): tensor for key, tensor in state.items() if owner[key] == name}
        if part:
            layers[name] = _pairs(_in_peft_names(getattr(pipeline, name), part, encoder=name.startswith("text_encoder")))
    return layers, strangers


def _in_peft_names(model: Any, part: dict[str, Tensor], *, encoder: bool) -> dict[str, Tensor]:
    """A component's tensors as `PATH.lora_A.weight` and `PATH.lora_B.weight`, the way its loader renames them."""
    if encoder:
        renamed: dict[str, Tensor] = convert_state_dict_to_peft(convert_state_dict_to_diffusers(part))
        if not hasattr(model, "text_model"):
            # CLIPTextModel has been flat since transformers 5; files say what it was before.
            renamed = {key.removeprefix("text_model."): tensor for key, tensor in renamed.items()}
        return renamed
    if any(".lora_A." in key for key in part):
        return part
    converted: dict[str, Tensor] = convert_unet_state_dict_to_peft(part)
    return converted


def _pairs(part: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Raises: KeyError: a layer without one of its two matrices."""
    paths = {_module(key) for key in part if ".lora_" in key}
    return {path: (part[f"{path}.lora_A.weight"], part[f"{path}.lora_B.weight"]) for path in sorted(paths)}


def _module(key: str) -> str:
    return key.partition(".lora_")[0].partition(".lora.")[0]


def _fits(module: Any, down: Tensor, up: Tensor) -> bool:
    """Whether a layer's matrices go with a module: the sides that meet it, and one another."""
    weight = getattr(module, "weight", None)
    if weight is None or not weight.ndim == down.ndim == up.ndim:
        return False
    return bool(down.shape[1] == weight.shape[1] and up.shape[0] == weight.shape[0] and up.shape[1] == down.shape[0])
