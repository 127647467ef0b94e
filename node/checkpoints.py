"""Finds checkpoints under the models folders and checks each before any library opens it.

A checkpoint is a diffusers folder (it holds model_index.json) or a single .safetensors or .gguf file. What it is, its
family, is read from its files, never from its name. A file that two engines can run is two checkpoints of one name.
Whatever is refused is listed with the reason, so that an operator whose model does not appear can see why.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from node.diffusers_folder import PICKLE_SUFFIXES, DiffusersFolder, check_folder, check_inside
from node.engine_names import EngineName
from node.gguf_header import MAGIC, read_gguf_header
from node.model_folders import candidates, folders_of, public_name
from node.offload import Offload
from node.pipeline_classes import Family, class_of
from node.profile import Sidecar, read_sidecar
from node.safetensors_header import (
    FLOAT_DTYPES,
    LOADED_BYTES,
    CheckpointRefused,
    TensorEntry,
    disguised_format,
    read_header,
)
from node.sdcpp_files import Component, check_files
from node.toml_files import read_toml
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


class FileFormat(StrEnum):
    """What its weights are written in."""

    DIFFUSERS = "diffusers"
    """A folder of safetensors and configs."""
    SAFETENSORS = "safetensors"
    GGUF = "gguf"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Weights on disk that passed every check."""

    name: str
    """Its public name: the sidecar's, else by where it lies (`public_name`)."""
    path: Path
    root: Path
    """The models folder it was found in; symbolic links must stay inside."""
    layout: Layout
    format: FileFormat
    engine: EngineName
    family: Family
    traits: Traits
    variant: str | None
    parameters: int
    """Number of floating-point weights, which a load casts to the profile's dtype."""
    stored_bytes: int
    largest_component: int
    """Of its parameters, those of the largest component."""
    largest_tensor: int
    sidecar: Sidecar = field(default_factory=Sidecar)
    components: Mapping[Component, Path] = field(default_factory=dict)
    """For sd.cpp: the files beside it."""
    whole: bool = False
    """For sd.cpp: text encoders and autoencoder are in the file itself."""

    def memory_bytes(self, dtype: str) -> int:
        """Bytes of its weights on a device when loaded as `dtype` (float32, float16, bfloat16)."""
        if self.engine is EngineName.SDCPP:
            # It computes on weights as they are stored.
            return self.stored_bytes
        return self.parameters * LOADED_BYTES[dtype]

    def device_bytes(self, dtype: str, offload: Offload) -> int:
        """Bytes of its weights that are on the device at once."""
        if offload is Offload.NONE or self.engine is EngineName.SDCPP:
            return self.memory_bytes(dtype)
        # Of layers, the one at work and the one that comes next.
        layers = self.largest_component if offload is Offload.MODEL else 2 * self.largest_tensor
        return min(layers, self.largest_component) * LOADED_BYTES[dtype]

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

    Checkpoints of one name are taken together when they are the same family in other formats, sizes or for other
    engines, for the node to choose from; else the first is taken, and the other told as refused.
    """
    found: list[Checkpoint] = []
    refused: list[CheckpointRefused] = []
    for path, root in _paths(roots, refused):
        try:
            for checkpoint in ways_to_run(path, root=root):
                _check_name(checkpoint, found)
                found.append(checkpoint)
        except CheckpointRefused as refusal:
            refused.append(refusal)
        except OSError as error:
            refused.append(CheckpointRefused(path, f"cannot be read ({error.strerror})"))
    # Text encoders and autoencoders lie beside the models they belong to, and are none themselves.
    parts = {part for checkpoint in found for part in checkpoint.components.values()}
    return Scan(tuple(found), tuple(refusal for refusal in refused if refusal.path.resolve() not in parts))


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


def _check_name(checkpoint: Checkpoint, found: Sequence[Checkpoint]) -> None:
    for other in found:
        same = (other.engine, other.format, other.stored_bytes) == (
            checkpoint.engine,
            checkpoint.format,
            checkpoint.stored_bytes,
        )
        if other.name == checkpoint.name and (same or other.family is not checkpoint.family):
            raise CheckpointRefused(checkpoint.path, f"the name {checkpoint.name!r} is taken by another checkpoint")


def inspect(path: Path, *, root: Path, engine: EngineName = EngineName.DIFFUSERS) -> Checkpoint:
    """Check one folder or file for one engine. Called right before a load, for files change after the scan.

    Raises: CheckpointRefused, naming the file; OSError.
    """
    for checkpoint in ways_to_run(path, root=root):
        if checkpoint.engine is engine:
            return checkpoint
    raise CheckpointRefused(path, f"the engine {engine} cannot run it any more")


def ways_to_run(path: Path, *, root: Path) -> tuple[Checkpoint, ...]:
    """One checkpoint for each engine that can run a folder or file, whether it is installed or not.

    Raises: CheckpointRefused, naming the file: none can; OSError.
    """
    check_inside(path, root)
    if path.is_dir():
        return (_folder(path, root),)
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise CheckpointRefused(path, f"{path.suffix} files are never loaded, only safetensors and GGUF")
    with path.open("rb") as file:
        start = file.read(16)
    is_gguf = start.startswith(MAGIC)
    if not is_gguf and (found := disguised_format(start)):
        raise CheckpointRefused(path, f"not safetensors: {found}")
    wanted = ".gguf" if is_gguf else ".safetensors"
    if path.suffix != wanted:
        # Libraries choose their reader by this ending, to the letter; any other spelling takes the pickle reader.
        raise CheckpointRefused(path, f"its name must end in {wanted}, in small letters")
    if is_gguf:
        return (_by_sdcpp(path, root, FileFormat.GGUF, read_gguf_header(path).tensors),)
    return _single_file(path, root)


def _folder(path: Path, root: Path) -> Checkpoint:
    folder = check_folder(path, root=root)
    sidecar = _sidecar(path / FOLDER_SIDECAR, root)
    if sidecar.engine is EngineName.SDCPP:
        raise CheckpointRefused(path / FOLDER_SIDECAR, "sd.cpp runs single files; this folder is for diffusers")
    return _by_diffusers(root, folder, folder.tensors, sidecar, path, Layout.FOLDER)


def _single_file(path: Path, root: Path) -> tuple[Checkpoint, ...]:
    """A safetensors file: for diffusers where a folder of configs is named, for sd.cpp where nothing is missing."""
    tensors = read_header(path)
    engine = _sidecar(path.with_suffix(".toml"), root).engine
    found: list[Checkpoint] = []
    refusals: list[CheckpointRefused] = []
    for each in EngineName if engine is None else (engine,):
        try:
            if each is EngineName.DIFFUSERS:
                found.append(_single_by_diffusers(path, root, tensors))
            else:
                found.append(_by_sdcpp(path, root, FileFormat.SAFETENSORS, tensors))
        except CheckpointRefused as refusal:
            refusals.append(refusal)
    if found:
        return tuple(found)
    # A family that only sd.cpp runs gets its reason; of what no engine knows, both say the same.
    raise refusals[-1] if family_of(tensors) is None else refusals[0]


def _single_by_diffusers(path: Path, root: Path, tensors: dict[str, TensorEntry]) -> Checkpoint:
    family = family_of(tensors)
    if family is None:
        raise CheckpointRefused(path, "its tensors are not those of a family this node runs as a single file")
    sidecar = _sidecar(path.with_suffix(".toml"), root)
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
    # The files of SD 1.5 and SDXL hold all components, the denoiser under the same prefix as ComfyUI's of others.
    denoiser = [tensor for name, tensor in tensors.items() if name.startswith(_COMFYUI_PREFIX)] or list(tensors.values())
    return _by_diffusers(root, folder, (*tensors.values(), *folder.tensors), sidecar, path, Layout.SINGLE_FILE, denoiser)


def _by_diffusers(
    root: Path,
    folder: DiffusersFolder,
    tensors: Sequence[TensorEntry],
    sidecar: Sidecar,
    path: Path,
    layout: Layout,
    denoiser: Sequence[TensorEntry] = (),
) -> Checkpoint:
    """tensors: all that a load reads; of them those of a single file that are its denoiser are named again."""
    return Checkpoint(
        name=sidecar.name or public_name(path, root),
        path=path,
        root=root,
        layout=layout,
        format=FileFormat.DIFFUSERS if layout is Layout.FOLDER else FileFormat.SAFETENSORS,
        engine=EngineName.DIFFUSERS,
        family=folder.pipeline.family,
        traits=folder.traits,
        variant=folder.variant,
        parameters=parameters_of(tensors),
        stored_bytes=sum(t.size_bytes for t in tensors),
        largest_component=max([parameters_of(denoiser), *map(parameters_of, folder.components.values())]),
        largest_tensor=max((t.elements for t in tensors if t.dtype in FLOAT_DTYPES), default=0),
        sidecar=sidecar,
    )


def _by_sdcpp(path: Path, root: Path, file_format: FileFormat, tensors: Mapping[str, TensorEntry]) -> Checkpoint:
    sidecar = _sidecar(path.with_suffix(".toml"), root)
    files = check_files(path, tensors, sidecar.components, root=root)
    return Checkpoint(
        name=sidecar.name or public_name(path, root),
        path=path,
        root=root,
        layout=Layout.SINGLE_FILE,
        format=file_format,
        engine=EngineName.SDCPP,
        family=files.family,
        traits=Traits(guidance_embeds=files.guidance_embeds, is_distilled=True, text_width=files.text_width),
        variant=None,
        parameters=sum(t.elements for t in files.tensors),
        stored_bytes=sum(t.size_bytes for t in files.tensors),
        largest_component=sum(t.elements for t in tensors.values()),
        largest_tensor=max((t.elements for t in files.tensors), default=0),
        sidecar=sidecar,
        components=files.components,
        whole=files.whole,
    )


def parameters_of(tensors: Iterable[TensorEntry]) -> int:
    """Number of floating-point weights."""
    return sum(tensor.elements for tensor in tensors if tensor.dtype in FLOAT_DTYPES)


def family_of(tensors: Mapping[str, TensorEntry]) -> Family | None:
    """The family of a single file by the names of its tensors; None when it is none that diffusers runs here."""
    bare = {name.removeprefix(_COMFYUI_PREFIX) for name in tensors}
    for family, marks in _SINGLE_FILE_MARKS:
        if all(mark in tensors or mark in bare for mark in marks):
            return family
    return None


def _sidecar(path: Path, root: Path) -> Sidecar:
    values = read_toml(path, root)
    try:
        return read_sidecar(values)
    except ValueError as error:
        raise CheckpointRefused(path, f"not a valid sidecar: {error}") from None


def weight_files(checkpoint: Checkpoint) -> list[Path]:
    """The files whose hashes tell a checkpoint from others."""
    if checkpoint.path.is_file():
        return [checkpoint.path, *checkpoint.components.values()]
    return sorted(checkpoint.path.rglob("*.safetensors"))
