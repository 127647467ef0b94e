"""Finds tiny autoencoders (TAESD and its kin), which draw previews in a hundredth of the time; never final pictures.

One is a `.safetensors` file in a folder called `vae_approx` (ComfyUI), `VAE-approx` or `VAE-taesd` (A1111): a decoder alone
in its maker's names, or both halves in diffusers', as a file or as a diffusers folder. For which latents it is cannot be
read from it beyond their number of channels: a sidecar's `latents` says it, else the maker's own word in its name (`taesd`,
`taesdxl`, `taesd3`, `taef1`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from node.extras import WHOLE, Folders, Place, check_place
from node.pipeline_classes import Family
from node.safetensors_header import CheckpointRefused, read_header

FOLDERS = Folders(frozenset({"vae_approx", "vae-approx", "vae-taesd"}), whole=WHOLE)
T = TypeVar("T")
MAX_WIDTH = 512
"""Channels inside; the real ones have 64."""
_MAKERS_FIRST = "1.weight"
_DIFFUSERS_FIRST = "decoder.layers.0.weight"
_MAKERS_NAME = re.compile(r"(\d+)\.((?:conv\.\d+\.|skip\.)?(?:weight|bias))")


class Latents(StrEnum):
    """What an autoencoder decodes."""

    SD15 = "sd15"
    SDXL = "sdxl"
    SD3 = "sd3"
    FLUX1 = "flux.1"


FAMILIES = {
    Latents.SD15: frozenset({Family.SD15}),
    Latents.SDXL: frozenset({Family.SDXL}),
    Latents.SD3: frozenset({Family.SD3}),
    # Z-Image was trained on FLUX.1's autoencoder.
    Latents.FLUX1: frozenset({Family.FLUX1, Family.FLUX1_KONTEXT, Family.Z_IMAGE}),
}
_CHANNELS = {Latents.SD15: 4, Latents.SDXL: 4, Latents.SD3: 16, Latents.FLUX1: 16}
_WORDS = {"taesdxl": Latents.SDXL, "taesd3": Latents.SD3, "taesd": Latents.SD15, "taef1": Latents.FLUX1}
"""In the order they are tried: the first is no `taesd`."""


class TinyVaeSidecar(BaseModel):
    """What an operator says about one, in a TOML file beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    latents: Latents | None = None


@dataclass(frozen=True, slots=True)
class TinyVae:
    """A tiny autoencoder on disk whose header passed every check."""

    place: Place
    latents: Latents
    channels: int
    width: int
    """Channels inside."""


def inspect_tiny_vae(place: Place) -> TinyVae | None:
    """Check one file; None for an encoder alone, which previews have no use for. Called again right before a load.

    Raises: CheckpointRefused, naming the file; OSError.
    """
    path = place.path
    check_place(path, place.root, "a tiny autoencoder's file name must end in .safetensors; pickles are never loaded")
    tensors = read_header(path)
    if place.name.lower().endswith("encoder"):
        return None
    first = decoder_of(tensors).get("layers.0.weight")
    if first is None or len(first.shape) != 4 or first.shape[0] > MAX_WIDTH:
        raise CheckpointRefused(path, "no tiny autoencoder: its tensors are not those of TAESD's decoder")
    latents = FOLDERS.said(path, place.root, TinyVaeSidecar).latents or next(
        (latents for word, latents in _WORDS.items() if word in place.name.lower()), None
    )
    if latents is None:
        words = ", ".join(_WORDS)
        raise CheckpointRefused(path, f"for which latents it is, neither its name ({words}) nor a sidecar's `latents` says")
    if first.shape[1] != _CHANNELS[latents]:
        raise CheckpointRefused(path, f"it decodes {first.shape[1]} channels; latents of {latents} have {_CHANNELS[latents]}")
    return TinyVae(place, latents, first.shape[1], first.shape[0])


def decoder_of(tensors: Mapping[str, T]) -> dict[str, T]:
    """The decoder's tensors in diffusers' names, `layers.0.weight`; none when there is no such decoder.

    In its maker's names its layers are numbered from 1, for a clamp comes first there.
    """
    if _DIFFUSERS_FIRST in tensors:
        return {name.removeprefix("decoder."): each for name, each in tensors.items() if name.startswith("decoder.")}
    if _MAKERS_FIRST not in tensors:
        return {}
    matches = {name: _MAKERS_NAME.fullmatch(name) for name in tensors}
    return {f"layers.{int(match[1]) - 1}.{match[2]}": tensors[name] for name, match in matches.items() if match}


@dataclass(frozen=True, slots=True)
class TinyVaes:
    """Every tiny autoencoder of a node, and what was refused."""

    files: tuple[TinyVae, ...] = ()
    refused: tuple[CheckpointRefused, ...] = ()

    def fitting(self, family: Family) -> TinyVae | None:
        """The first by name for a family's latents; None when there is none."""
        fitting = (each for each in self.files if family in FAMILIES[each.latents])
        return min(fitting, key=lambda each: each.place.name, default=None)


def find_tiny_vaes(roots: Sequence[Path]) -> TinyVaes:
    """Look through the models folders."""
    found, refused = FOLDERS.look(roots, inspect_tiny_vae)
    return TinyVaes(tuple(vae for vae in found if vae is not None), tuple(refused))
