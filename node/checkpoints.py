"""Finds checkpoints under the models folders and checks each before any library opens it.

A checkpoint is a diffusers folder (it holds model_index.json) or a single .safetensors file. What it is, its family,
is read from its files, never from its name. Whatever is refused is listed with the reason, so that an operator whose
model does not appear can see why.
"""

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from node.diffusers_folder import PICKLE_SUFFIXES, DiffusersFolder, check_folder, check_inside
from node.model_folders import candidates, folders_of, public_name
from node.pipeline_classes import Family, class_of
from node.profile import Sidecar, read_sidecar
from node.safetensors_header import (
    DTYPE_BYTES,
    FLOAT_DTYPES,
    CheckpointRefused,
    TensorEntry,
    disguised_format,
    read_header,
)
from node.traits import Traits

FOLDER_SIDECAR = "aquatint.toml"

_SINGLE_FILE_MARKS = (
    # Tensor names that only one family has, in the order they are tried.
    (Family.SDXL, ("model.diffusion_model.input_blocks.0.0.weight", "conditioner.embedders.1.model.ln_final.weight")),
    (
        Family.SD15,
        (
            "model.diffusion_model.input_blocks.0.0.weight",
            "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
        ),
    ),
    # Transformers alone, by the names of diffusers and of their makers.
    (Family.Z_IMAGE, ("cap_embedder.1.weight", "noise_refiner.0.attention.norm_q.weight")),
    (Family.Z_IMAGE, ("cap_embedder.1.weight", "noise_refiner.0.attention.q_norm.weight")),
    (Family.FLUX1, ("context_embedder.weight", "single_transformer_blocks.0.proj_mlp.weight")),
    (Family.FLUX1, ("vector_in.in_layer.weight", "double_blocks.0.img_attn.qkv.weight")),
    (Family.FLUX2_KLEIN, ("context_embedder.weight", "double_stream_modulation_img.linear.weight")),
    (Family.FLUX2_KLEIN, ("txt_in.weight", "double_stream_modulation_img.lin.weight")),
    (Family.SD3, ("pos_embed.pos_embed", "transformer_blocks.0.norm1_context.linear.weight")),
    (Family.SD3, ("pos_embed", "joint_blocks.0.context_block.attn.qkv.weight")),
    (Family.QWEN_IMAGE, ("txt_norm.weight", "transformer_blocks.0.img_mod.1.weight")),
)
_SAME_TENSORS = {
    Family.FLUX1: {Family.FLUX1, Family.FLUX1_KONTEXT},
    Family.QWEN_IMAGE: {Family.QWEN_IMAGE, Family.QWEN_IMAGE_EDIT, Family.QWEN_IMAGE_EDIT_PLUS},
}
"""Families whose tensors have the same names: which of them a file is, its folder of configs says."""
_COMFYUI_PREFIX = "model.diffusion_model."


class Layout(StrEnum):
    """How a checkpoint lies on disk."""

    FOLDER = "folder"
    SINGLE_FILE = "single-file"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Weights on disk that passed every check."""

    name: str
    """Its public name: the sidecar's, else by where it lies (`public_name`)."""
    path: Path
    root: Path
    """The models folder it was found in; symbolic links must stay inside."""
    layout: Layout
    family: Family
    traits: Traits
    variant: str | None
    parameters: int
    """Number of floating-point weights, which a load casts to the profile's dtype."""
    stored_bytes: int
    sidecar: Sidecar = field(default_factory=Sidecar)

    def memory_bytes(self, dtype: str) -> int:
        """Bytes of its weights on a device when loaded as `dtype` (float32, float16, bfloat16)."""
        return self.parameters * {"float32": 4, "float16": 2, "bfloat16": 2}[dtype]

    @property
    def config(self) -> Path | None:
        """The folder of configs a single file is loaded with; None when its sidecar names none."""
        return None if self.sidecar.config is None else (self.path.parent / self.sidecar.config).resolve()


@dataclass(frozen=True, slots=True)
class Scan:
    """What one look at the models folders found."""

    checkpoints: tuple[Checkpoint, ...]
    refused: tuple[CheckpointRefused, ...]


def scan(roots: Sequence[Path]) -> Scan:
    """Look through the models folders. A folder that is itself a checkpoint counts as one.

    Of two checkpoints with one name the first is taken, and the other told as refused.
    """
    found: dict[str, Checkpoint] = {}
    refused: list[CheckpointRefused] = []
    for path, root in _paths(roots, refused):
        try:
            checkpoint = inspect(path, root=root)
            if checkpoint.name in found:
                raise CheckpointRefused(path, f"the name {checkpoint.name!r} is taken by another checkpoint")
            found[checkpoint.name] = checkpoint
        except CheckpointRefused as refusal:
            refused.append(refusal)
        except OSError as error:
            refused.append(CheckpointRefused(path, f"cannot be read ({error.strerror})"))
    return Scan(tuple(found.values()), tuple(refused))


def _paths(roots: Sequence[Path], refused: list[CheckpointRefused]) -> Iterator[tuple[Path, Path]]:
    """Each path to inspect and the models folder it is in; what cannot be looked into goes to `refused`."""
    for given in roots:
        try:
            folders = folders_of(given)
        except CheckpointRefused as refusal:
            refused.append(refusal)
            continue
        for folder in folders:
            if folder.is_dir():
                yield from ((path, folder) for path in candidates(folder))
            else:
                refused.append(CheckpointRefused(folder, "no such folder"))


def inspect(path: Path, *, root: Path) -> Checkpoint:
    """Check one folder or file. Called at the scan and again right before a load, for files change in between.

    Raises: CheckpointRefused, naming the file; OSError.
    """
    check_inside(path, root)
    if path.is_dir():
        return _folder(path, root)
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise CheckpointRefused(path, f"{path.suffix} files are never loaded, only safetensors")
    with path.open("rb") as file:
        start = file.read(16)
    if start.startswith(b"GGUF"):
        raise CheckpointRefused(path, "a GGUF file; no engine of this node runs GGUF")
    if found := disguised_format(start):
        raise CheckpointRefused(path, f"not safetensors: {found}")
    if path.suffix != ".safetensors":
        # Libraries choose their reader by this ending, to the letter; any other spelling takes the pickle reader.
        raise CheckpointRefused(path, "its name must end in .safetensors, in small letters")
    return _single_file(path, root)


def _folder(path: Path, root: Path) -> Checkpoint:
    folder = check_folder(path, root=root)
    sidecar = _sidecar(path / FOLDER_SIDECAR)
    return _checkpoint(root, folder, folder.tensors, sidecar, path, Layout.FOLDER)


def _single_file(path: Path, root: Path) -> Checkpoint:
    tensors = read_header(path)
    family = family_of(tensors)
    if family is None:
        raise CheckpointRefused(path, "its tensors are not those of a family this node runs as a single file")
    sidecar = _sidecar(path.with_suffix(".toml"))
    if sidecar.config is None:
        wanted = path.with_suffix(".toml").name
        raise CheckpointRefused(
            path,
            f"a single file holds no configs or tokenizer: put {wanted} beside it with `config = FOLDER`, "
            "a diffusers folder of the same family (weight files are not needed in it for SD 1.5 and SDXL)",
        )
    config = (path.parent / sidecar.config).resolve()
    pipeline = class_of(family)
    elsewhere = pipeline.components
    if pipeline.transformer_files:
        # Text encoder and VAE come from the folder, so their weights are checked there.
        elsewhere = frozenset({pipeline.denoiser})
        inside = {name: tensor for name, tensor in tensors.items() if name.startswith(_COMFYUI_PREFIX)}
        tensors = inside or tensors
    folder = check_folder(config, root=root, without_weights=elsewhere)
    if folder.pipeline.family not in _SAME_TENSORS.get(family, {family}):
        raise CheckpointRefused(path, f"it is {family.value}, but its config folder is {folder.pipeline.family.value}")
    return _checkpoint(root, folder, (*tensors.values(), *folder.tensors), sidecar, path, Layout.SINGLE_FILE)


def _checkpoint(
    root: Path,
    folder: DiffusersFolder,
    tensors: Sequence[TensorEntry],
    sidecar: Sidecar,
    path: Path,
    layout: Layout,
) -> Checkpoint:
    return Checkpoint(
        name=sidecar.name or public_name(path, root),
        path=path,
        root=root,
        layout=layout,
        family=folder.pipeline.family,
        traits=folder.traits,
        variant=folder.variant,
        parameters=sum(t.elements for t in tensors if t.dtype in FLOAT_DTYPES),
        stored_bytes=sum(t.elements * DTYPE_BYTES[t.dtype] for t in tensors),
        sidecar=sidecar,
    )


def family_of(tensors: dict[str, TensorEntry]) -> Family | None:
    """The family of a single file by the names of its tensors; None when it is none of ours."""
    bare = {name.removeprefix(_COMFYUI_PREFIX) for name in tensors}
    for family, marks in _SINGLE_FILE_MARKS:
        if all(mark in tensors or mark in bare for mark in marks):
            return family
    return None


def _sidecar(path: Path) -> Sidecar:
    if not path.is_file():
        return Sidecar()
    try:
        return read_sidecar(path)
    except (ValueError, tomllib.TOMLDecodeError) as error:
        raise CheckpointRefused(path, f"not a valid sidecar: {error}") from None
