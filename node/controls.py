"""Finds ControlNets below the models folders and tells what they are from their tensors.

A ControlNet is one `.safetensors` file, in diffusers' names or those of its inventors, or a diffusers folder (`config.json`
beside `diffusion_pytorch_model.safetensors`), in a folder called `controlnet` (ComfyUI, A1111). The family it was made for
is read from its tensors. What its pictures must show cannot be: a sidecar's `kind` says it, else the one of the kinds
(`openpose` counts for pose) that is a word of its name, else nothing, and then it is asked for by name alone.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from common.errors import ControlRefused
from common.images_api import ControlAsk, ControlKind
from node.control_net_classes import NETS
from node.diffusers_folder import check_inside, read_json
from node.extras import WHOLE, Folders, Place, Sha256, check_place
from node.pipeline_classes import Family
from node.safetensors_header import FLOAT_DTYPES, LOADED_BYTES, CheckpointRefused, TensorEntry, read_header

FOLDERS = Folders(frozenset({"controlnet"}), whole=WHOLE)

_INVENTORS_PREFIX = "control_model."
_DIFFUSERS_MARKS = ("controlnet_cond_embedding.conv_in.weight", "controlnet_down_blocks.0.weight")
_INVENTORS_MARKS = ("input_hint_block.0.weight", "zero_convs.0.0.weight")
_OTHERS = {
    "lora_controlnet": "a Control-LoRA",
    "task_embedding": "a union of several ControlNets",
    "adapter.body.": "a T2I-Adapter",
    "difference": "a difference to another model's weights",
    "controlnet_mode_embedder.": "a union of several ControlNets",
    "controlnet_x_embedder.": "a ControlNet of a transformer that is none of those known here",
    "controlnet_blocks.0.": "a ControlNet of a transformer that is none of those known here",
    "control_layers.0.": "a ControlNet of a transformer that is none of those known here",
}
"""Beginnings of tensor names of what else lies in such folders, for a refusal that says what the file is."""
_TRANSFORMERS = (
    (Family.QWEN_IMAGE, ("controlnet_x_embedder.weight", "txt_norm.weight")),
    (Family.FLUX1, ("controlnet_x_embedder.weight", "context_embedder.weight")),
    (Family.SD3, ("controlnet_blocks.0.weight", "pos_embed_input.proj.weight")),
)
_FOR_INPAINTING = ("extra_conditioning_channels", "extra_condition_channels")
_CROSS_ATTENTION = re.compile(r"attn2\.to_k\.weight$")
_SD2_TEXT_WIDTH = 1024
_WORDS = {kind.value: kind for kind in ControlKind} | {"openpose": ControlKind.POSE}


class ControlSidecar(BaseModel):
    """What an operator says about one ControlNet, in a TOML file beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = Field(default=None, min_length=1, max_length=200, pattern=r"^[^<>:\\/\s][^<>:\\]*$")
    """The name requests use, instead of the file's."""
    kind: ControlKind | None = None


@dataclass(frozen=True, slots=True)
class ControlFile:
    """A ControlNet on disk that passed every check of its header."""

    name: str
    path: Path
    root: Path
    family: Family
    kind: ControlKind | None
    parameters: int
    """Number of floating-point weights."""
    config: Path | None = None
    """Its config, where it is a diffusers folder; else the model it is used with has the same values."""

    @property
    def place(self) -> Place:
        """What a worker needs to find it."""
        return Place(self.name, self.path, self.root)

    def memory_bytes(self, dtype: str) -> int:
        """Bytes of its weights on a device when loaded as `dtype`."""
        return self.parameters * LOADED_BYTES[dtype]

    def shown(self) -> dict[str, str | None]:
        """As clients see it."""
        return {"name": self.name, "kind": self.kind}


def inspect_control(place: Place) -> ControlFile:
    """Check one file. Called at the scan and again right before a load.

    Raises: CheckpointRefused, naming the file; OSError.
    """
    path = place.path
    check_place(path, place.root, "a ControlNet's file name must end in .safetensors; pickle formats are never loaded")
    tensors = read_header(path)
    family = _family(tensors)
    if not isinstance(family, Family):
        raise CheckpointRefused(path, family)
    config = path.with_name("config.json") if path.name in WHOLE else None
    if config is not None:
        check_inside(config, place.root)
        _check_config(config, NETS[family].name)
    elif NETS[family].needs_config:
        raise CheckpointRefused(path, f"a ControlNet for {family.value}, of which diffusers' folder with its config is needed")
    said = FOLDERS.said(path, place.root, ControlSidecar)
    parameters = sum(each.elements for each in tensors.values() if each.dtype in FLOAT_DTYPES)
    name = said.name or place.name
    return ControlFile(name, path, place.root, family, said.kind or _kind(place.name), parameters, config)


def _check_config(file: Path, class_name: str) -> None:
    config = read_json(file)
    if (name := config.get("_class_name")) != class_name:
        raise CheckpointRefused(file, f"its class is {str(name)[:80]!r}, not {class_name}")
    if any(config.get(key) for key in _FOR_INPAINTING):
        raise CheckpointRefused(file, "a ControlNet for inpainting, which this node does not use")


def _family(tensors: Mapping[str, TensorEntry]) -> Family | str:
    """The family a ControlNet was made for; a text when it is none that can be used, saying why."""
    bare = {name.removeprefix(_INVENTORS_PREFIX): entry for name, entry in tensors.items()}
    known = next((family for family, marks in _TRANSFORMERS if all(mark in bare for mark in marks)), None)
    if known is not None and "controlnet_mode_embedder.weight" not in bare:
        return known
    for start, what in _OTHERS.items():
        if any(name.startswith(start) for name in bare):
            return f"{what}, which this node does not use"
    if not any(all(mark in bare for mark in marks) for marks in (_DIFFUSERS_MARKS, _INVENTORS_MARKS)):
        return "no ControlNet: its tensors are not those of one"
    if "add_embedding.linear_1.weight" in bare or "label_emb.0.0.weight" in bare:
        return Family.SDXL
    widths = {entry.shape[-1] for name, entry in bare.items() if _CROSS_ATTENTION.search(name) and entry.shape}
    if _SD2_TEXT_WIDTH in widths:
        return "a ControlNet for Stable Diffusion 2, which this node does not run"
    return Family.SD15


def _kind(name: str) -> ControlKind | None:
    """The one kind that is a word of a name; None where there is none, or several."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    kinds = {_WORDS[word] for word in words if word in _WORDS}
    return kinds.pop() if len(kinds) == 1 else None


@dataclass(frozen=True, slots=True)
class Controls:
    """Every ControlNet of a node, by name, and what was refused."""

    files: tuple[ControlFile, ...] = ()
    refused: tuple[CheckpointRefused, ...] = ()
    sha256: Sha256 = field(default_factory=Sha256)

    def __iter__(self) -> Iterator[ControlFile]:
        return iter(self.files)

    def fitting(self, family: Family) -> tuple[ControlFile, ...]:
        """Those made for a family, by name."""
        return tuple(sorted((each for each in self.files if each.family is family), key=lambda each: each.name))

    def choose(self, ask: ControlAsk, family: Family) -> ControlFile:
        """The ControlNet a request means: the one of that name, else the first of that kind by name.

        Raises: ControlRefused: not here, made for another family, or of another kind.
        """
        fitting = self.fitting(family)
        if ask.name is None:
            found = next((each for each in fitting if each.kind is ask.kind), None)
            if found is None:
                kinds = sorted({str(each.kind) for each in fitting if each.kind})
                here = f"there are ControlNets for {', '.join(kinds)}" if kinds else "there is no ControlNet of any kind"
                raise ControlRefused(f"For {family.value} there is no ControlNet of the kind '{ask.kind}' here; {here}.")
            return found
        found = next((each for each in self.files if each.name == ask.name), None)
        if found is None:
            names = ", ".join(repr(each.name) for each in fitting) or "none"
            raise ControlRefused(f"There is no ControlNet {ask.name[:80]!r} here. For {family.value}: {names}.")
        if found.family is not family:
            raise ControlRefused(
                f"The ControlNet {found.name!r} was made for {found.family.value}; this model is {family.value}.",
                code="control_incompatible",
            )
        if ask.kind is not None and found.kind not in (None, ask.kind):
            raise ControlRefused(
                f"The ControlNet {found.name!r} is for {found.kind}, not for {ask.kind}.", code="control_incompatible"
            )
        return found


def find_controls(roots: Sequence[Path]) -> Controls:
    """Look through the models folders. Of two with one name the first is taken, the other told as refused."""
    by_name, refused = FOLDERS.look_by_name(roots, inspect_control, "ControlNet")
    return Controls(tuple(by_name.values()), tuple(refused))
