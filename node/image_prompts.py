"""Finds IP-Adapters and their image encoders below the models folders, by which pictures take the place of words.

An adapter is a `.safetensors` file in a folder called `ipadapter` (ComfyUI) or `ip-adapter`; an encoder is CLIP's half for
pictures, as a file or with its `config.json` in a folder, in `clip_vision` (ComfyUI) or `image_encoder`. They go together
when the adapter reads vectors as wide as the encoder gives; both are told by their tensors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isqrt
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from node.diffusers_folder import check_inside, read_json
from node.extras import Folders, Place, Sha256, check_place
from node.pipeline_classes import Family
from node.safetensors_header import LOADED_BYTES, CheckpointRefused, TensorEntry, read_header

ADAPTERS = Folders(frozenset({"ipadapter", "ip-adapter", "ip_adapter"}))
ENCODERS = Folders(frozenset({"clip_vision", "image_encoder"}), whole=("model.safetensors",))
_FAMILIES = {768: Family.SD15, 2048: Family.SDXL}
"""By the width of the text embeddings that an adapter's tokens stand beside."""
_HEADS = {768: 12, 1024: 16, 1280: 16, 1664: 16}
"""Of CLIP's ViT-B, L, H and bigG, by their width: shapes do not tell them."""
_QUICK = frozenset({768, 1024})
"""Those of OpenAI, whose activation is the quick one."""
_EMBEDDINGS = "vision_model.embeddings."


class AdapterSidecar(BaseModel):
    """What an operator says about one adapter, in a TOML file beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: Family | None = None
    """Where the width of its tokens is that of no known family."""


@dataclass(frozen=True, slots=True)
class AdapterFile:
    """An IP-Adapter on disk whose header passed every check."""

    place: Place
    family: Family
    reads: int
    """Width of the vectors it makes tokens of."""
    parameters: int


@dataclass(frozen=True, slots=True)
class EncoderFile:
    """An image encoder on disk whose header passed every check, and the sizes it is built with."""

    place: Place
    gives: int
    """Width of the vector it makes of a picture."""
    width: int
    inner: int
    layers: int
    heads: int
    patch_px: int
    image_px: int
    activation: str
    parameters: int


@dataclass(frozen=True, slots=True)
class ImagePrompt:
    """An adapter with an encoder that goes with it."""

    adapter: AdapterFile
    encoder: EncoderFile

    @property
    def places(self) -> tuple[Place, Place]:
        """What a worker needs to find both."""
        return self.adapter.place, self.encoder.place

    def bytes_beside(self, dtype: str) -> dict[str, int]:
        """Device memory of both when loaded as `dtype`, by name."""
        size = LOADED_BYTES[dtype]
        return {each.place.name: size * each.parameters for each in (self.adapter, self.encoder)}


def inspect_adapter(place: Place) -> AdapterFile:
    """Check one file. Called at the scan and again right before a load. Raises: CheckpointRefused; OSError."""
    tensors = _tensors(place)
    if any(name.startswith("image_proj.latents") for name in tensors):
        raise CheckpointRefused(place.path, "an IP-Adapter of the kind `plus`, which this node does not use")
    projection, keys = tensors.get("image_proj.proj.weight"), tensors.get("ip_adapter.1.to_k_ip.weight")
    strangers = [name for name in tensors if not name.startswith(("image_proj.", "ip_adapter."))]
    if projection is None or keys is None or strangers or len(projection.shape) != 2 or len(keys.shape) != 2:
        raise CheckpointRefused(place.path, "no plain IP-Adapter: its tensors are not those of one")
    family = ADAPTERS.said(place.path, place.root, AdapterSidecar).family or _FAMILIES.get(keys.shape[1])
    if family not in (Family.SD15, Family.SDXL):
        raise CheckpointRefused(place.path, f"for no family that is known here: its tokens are {keys.shape[1]} wide")
    return AdapterFile(place, family, projection.shape[1], sum(entry.elements for entry in tensors.values()))


def inspect_encoder(place: Place) -> EncoderFile:
    """Check one file. Called at the scan and again right before a load. Raises: CheckpointRefused; OSError."""
    tensors = _tensors(place)
    patch = tensors.get(f"{_EMBEDDINGS}patch_embedding.weight")
    places = tensors.get(f"{_EMBEDDINGS}position_embedding.weight")
    inner = tensors.get("vision_model.encoder.layers.0.mlp.fc1.weight")
    projection = tensors.get("visual_projection.weight")
    if (
        patch is None
        or places is None
        or inner is None
        or projection is None
        or [len(each.shape) for each in (patch, places, inner, projection)] != [4, 2, 2, 2]
    ):
        raise CheckpointRefused(place.path, "no CLIP image encoder with a projection: its tensors are not those of one")
    width, patch_px = patch.shape[0], patch.shape[2]
    heads, activation = _heads_and_activation(place, width)
    layers = len({name.split(".")[3] for name in tensors if name.startswith("vision_model.encoder.layers.")})
    return EncoderFile(
        place=place,
        gives=projection.shape[0],
        width=width,
        inner=inner.shape[0],
        layers=layers,
        heads=heads,
        patch_px=patch_px,
        # One place is the whole picture's.
        image_px=patch_px * isqrt(max(0, places.shape[0] - 1)),
        activation=activation,
        parameters=sum(entry.elements for entry in tensors.values()),
    )


def _heads_and_activation(place: Place, width: int) -> tuple[int, str]:
    config = place.path.with_name("config.json") if place.path.name in ENCODERS.whole else None
    if config is None or not config.is_file():
        if width not in _HEADS:
            raise CheckpointRefused(place.path, f"an image encoder {width} wide, which needs its config.json beside it")
        return _HEADS[width], "quick_gelu" if width in _QUICK else "gelu"
    check_inside(config, place.root)
    said = read_json(config)
    said = said.get("vision_config", said)
    heads, activation = said.get("num_attention_heads"), said.get("hidden_act", "quick_gelu")
    if type(heads) is not int or heads < 1 or width % heads or activation not in ("gelu", "quick_gelu"):
        raise CheckpointRefused(config, "its num_attention_heads or hidden_act are not those of a CLIP image encoder")
    return heads, activation


def _tensors(place: Place) -> Mapping[str, TensorEntry]:
    check_place(place.path, place.root, "its file name must end in .safetensors; pickle formats are never loaded")
    return read_header(place.path)


@dataclass(frozen=True, slots=True)
class ImagePrompts:
    """Every adapter of a node with an encoder that goes with it, in the order of names, and what was refused."""

    pairs: tuple[ImagePrompt, ...] = ()
    refused: tuple[CheckpointRefused, ...] = ()
    sha256: Sha256 = field(default_factory=Sha256)

    def fitting(self, family: Family) -> ImagePrompt | None:
        """The first by name for a family; None when there is none."""
        return next((each for each in self.pairs if each.adapter.family is family), None)


def find_image_prompts(roots: Sequence[Path]) -> ImagePrompts:
    """Look through the models folders. An adapter without an encoder that goes with it is told as refused."""
    adapters, refused = ADAPTERS.look(roots, inspect_adapter)
    encoders, unread = ENCODERS.look(roots, inspect_encoder)
    refused += unread
    pairs = []
    for adapter in sorted(adapters, key=lambda each: each.place.name):
        encoder = next((each for each in encoders if each.gives == adapter.reads), None)
        if encoder is None:
            why = f"no image encoder here gives the vectors it reads, {adapter.reads} wide (folder `clip_vision`)"
            refused.append(CheckpointRefused(adapter.place.path, why))
        else:
            pairs.append(ImagePrompt(adapter, encoder))
    return ImagePrompts(tuple(pairs), tuple(refused))
