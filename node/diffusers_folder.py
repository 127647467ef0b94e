"""Checks a diffusers folder (model_index.json, one folder a component) before a library may open it."""

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node.pipeline_classes import NOT_LOADED, PIPELINE_CLASSES, PipelineClass
from node.safetensors_header import CheckpointRefused, TensorEntry, disguised_format, read_header
from node.traits import Traits

INDEX = "model_index.json"
MAX_CONFIG_BYTES = 1024 * 1024
MAX_VOCABULARY_BYTES = 64 * 1024 * 1024
"""Tokenizers are the only large JSON of a checkpoint: Gemma's has 34 MB."""
MAX_LIST_BYTES = 4 * 1024 * 1024
"""Of what else belongs to tokenizers, and of the indexes of shards."""
VOCABULARIES = ("vocab.json", "tokenizer.json")
MAX_FILES = 2000
PICKLE_SUFFIXES = frozenset({".bin", ".ckpt", ".pt", ".pth", ".pkl", ".npy", ".npz", ".onnx", ".msgpack"})
"""Formats that are pickles, or that nothing here reads. Their content is checked as well, whatever the name."""
CODE_SUFFIXES = frozenset({".py", ".pyc", ".so", ".dll", ".dylib"})
_VARIANT = re.compile(r"\.(fp16|bf16)[.-]", re.ASCII)
"""In names of half-precision weights, before the ending or the number of a shard."""
_PLAIN_NAME = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class DiffusersFolder:
    """A folder that passed every check."""

    path: Path
    pipeline: PipelineClass
    components: Mapping[str, tuple[TensorEntry, ...]]
    """Every tensor a load reads, by component; empty for a folder of configs."""
    traits: Traits
    variant: str | None
    """"fp16" or "bf16" when only half-precision files named so are there."""

    @property
    def tensors(self) -> tuple[TensorEntry, ...]:
        """All of them."""
        return tuple(tensor for tensors in self.components.values() for tensor in tensors)


def check_folder(path: Path, *, root: Path, without_weights: Collection[str] = ()) -> DiffusersFolder:
    """Check every file of a diffusers folder.

    root: the models folder that symbolic links must not lead out of. without_weights: components whose weights are
    elsewhere, in the single file that these configs are for.
    Raises: CheckpointRefused, naming the file; OSError.
    """
    files = sorted(file for file in path.rglob("*") if not file.is_dir())
    if len(files) > MAX_FILES:
        raise CheckpointRefused(path, f"more than {MAX_FILES} files")
    for file in (path, *files):
        check_inside(file, root)
    pipeline = _read_index(path / INDEX)
    for file in files:
        _check_kind(file)
    tensors, variant = _weights(path, pipeline.components.difference(without_weights))
    traits = Traits.of(
        pipeline=read_json(path / INDEX),
        sampler=read_json(path / "scheduler" / "scheduler_config.json"),
        denoiser=read_json(path / pipeline.denoiser / "config.json"),
    )
    return DiffusersFolder(path, pipeline, tensors, traits, variant)


def check_inside(path: Path, root: Path) -> None:
    """Raises: CheckpointRefused: a symbolic link that leads out of the models folder or to nothing; a pipe or device."""
    real = path.resolve()
    if not real.is_relative_to(root.resolve()):
        raise CheckpointRefused(path, "a symbolic link that leads out of the models folder")
    if not real.exists():
        raise CheckpointRefused(path, "a symbolic link to nothing")
    if not real.is_file() and not real.is_dir():
        # Opening a pipe waits for a writer, for ever.
        raise CheckpointRefused(path, "neither a file nor a folder")


def _read_index(path: Path) -> PipelineClass:
    index = read_json(path)
    name = index.get("_class_name")
    if not isinstance(name, str) or name not in PIPELINE_CLASSES:
        known = ", ".join(PIPELINE_CLASSES)
        raise CheckpointRefused(path, f"pipeline class {str(name)[:80]!r} is not one this node runs ({known})")
    pipeline = PIPELINE_CLASSES[name]
    present = set()
    for key, value in index.items():
        if not isinstance(value, list | dict):
            continue
        if key in NOT_LOADED and value == [None, None]:
            continue
        if not isinstance(value, list) or len(value) != 2 or not all(isinstance(part, str) for part in value):
            raise CheckpointRefused(path, f"component {key[:80]!r} is not [library, class]")
        if key in NOT_LOADED and tuple(value) in NOT_LOADED[key]:
            continue
        if not pipeline.allows(key, value[0], value[1]):
            raise CheckpointRefused(path, f"component {key[:80]!r} may not be {value[1][:80]!r} of {value[0][:80]!r}")
        present.add(key)
    if missing := pipeline.components - present:
        raise CheckpointRefused(path, f"no component {', '.join(sorted(missing))}")
    return pipeline


def _check_kind(file: Path) -> None:
    """Refuse code, and pickles by content: a pickle does not become safe by being called .safetensors or .txt.

    Files that are called what they are stay: most downloads hold .bin beside .safetensors, and loads read the latter only.
    """
    if file.suffix.lower() in CODE_SUFFIXES:
        raise CheckpointRefused(file, "code; checkpoints are weights and configs only")
    if file.suffix.lower() in PICKLE_SUFFIXES:
        return
    with file.open("rb") as opened:
        start = opened.read(16)
    if (found := disguised_format(start)) and ("pickle" in found or "NumPy" in found):
        raise CheckpointRefused(file, found)
    if file.suffix == ".json":
        config = read_json(file)
        if file.name.endswith(".safetensors.index.json"):
            _check_shards(file, config)


def _check_shards(file: Path, index: dict[str, Any]) -> None:
    names = index.get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(v, str) and _PLAIN_NAME.fullmatch(v) for v in names.values()):
        raise CheckpointRefused(file, "its weight_map must name files of the same folder")
    if missing := {name for name in names.values() if not (file.parent / name).is_file()}:
        raise CheckpointRefused(file, f"names {min(missing)!r}, which is not there")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object of a checkpoint, bounded and without what makes libraries import or fetch code.

    Known ways: `auto_map`, `custom_pipeline`, `*_internal` keys (CVE-2026-4372) and attention kernels named by
    repository, all of which take effect although remote code is not trusted.
    Raises: CheckpointRefused: any of these, too large, or no JSON; OSError.
    """
    try:
        size_bytes = file.stat().st_size
    except FileNotFoundError:
        raise CheckpointRefused(file, "missing") from None
    limit = MAX_CONFIG_BYTES
    if file.name in VOCABULARIES:
        limit = MAX_VOCABULARY_BYTES
    elif "token" in file.name or file.name.endswith(".index.json"):
        limit = MAX_LIST_BYTES
    if size_bytes > limit:
        raise CheckpointRefused(file, f"{size_bytes} bytes; at most {limit} are read")
    if file.name in VOCABULARIES:
        # Nothing in them is heeded here, and parsed some would take half a gigabyte: their reader is the tokenizer's own.
        return _check_braces(file, size_bytes)
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointRefused(file, f"not JSON ({type(error).__name__})") from None
    if not isinstance(value, dict):
        # Files such as chat templates may be other JSON; only objects configure anything.
        if file.name in (INDEX, "config.json", "scheduler_config.json"):
            raise CheckpointRefused(file, "not a JSON object")
        return {}
    try:
        _check_no_code(file, value)
    except RecursionError:
        raise CheckpointRefused(file, "tables within tables without end") from None
    return value


def _check_braces(file: Path, size_bytes: int) -> dict[str, Any]:
    """Raises: CheckpointRefused: it does not begin and end as a JSON object."""
    with file.open("rb") as opened:
        start = opened.read(64).lstrip()
        opened.seek(max(0, size_bytes - 64))
        end = opened.read(64).rstrip()
    if not (start.startswith(b"{") and end.endswith(b"}")):
        raise CheckpointRefused(file, "not a JSON object")
    return {}


def _check_no_code(file: Path, value: Any) -> None:
    if isinstance(value, list):
        for item in value:
            _check_no_code(file, item)
    if not isinstance(value, dict):
        return
    for key, item in value.items():
        if key in ("auto_map", "custom_pipeline", "trust_remote_code") or key.endswith("_internal"):
            raise CheckpointRefused(file, f"{key!r} would run code that came with the checkpoint")
        if "attn_implementation" in key and isinstance(item, str) and "/" in item:
            raise CheckpointRefused(file, f"{key!r} names a kernel to download")
        _check_no_code(file, item)


def _weights(path: Path, components: Iterable[str]) -> tuple[dict[str, tuple[TensorEntry, ...]], str | None]:
    """The tensors of those components that have weights, and the variant that all of them share."""
    tensors: dict[str, tuple[TensorEntry, ...]] = {}
    variants: set[str | None] = set()
    for component in sorted(components):
        if component in ("scheduler", "processor") or component.startswith("tokenizer"):
            continue
        folder = path / component
        files = sorted(folder.glob("*.safetensors"))
        full = [file for file in files if not _VARIANT.search(file.name)]
        if not files:
            others = sorted(file for file in folder.glob("*") if file.suffix.lower() in PICKLE_SUFFIXES)
            if others:
                raise CheckpointRefused(
                    others[0], f"{others[0].suffix} files are never loaded, and no .safetensors is beside it"
                )
            raise CheckpointRefused(folder, "no .safetensors file")
        chosen = full or _of_one_variant(files)
        variants.add(None if full else _variant(chosen[0]))
        tensors[component] = tuple(tensor for file in chosen for tensor in read_header(file).values())
    if len(variants - {None}) > 1:
        raise CheckpointRefused(path, "some components are there as fp16 only and others as bf16 only")
    # A mixture loads as the variant: diffusers falls back to the plain file where a component has none.
    return tensors, next(iter(variants - {None}), None)


def _variant(file: Path) -> str:
    """Which of fp16 and bf16 a file is called."""
    found = _VARIANT.search(file.name)
    assert found is not None
    return found[1]


def _of_one_variant(files: list[Path]) -> list[Path]:
    """Of half-precision files, those of the first variant by name; a component may be there in both."""
    first = _variant(files[0])
    return [file for file in files if _variant(file) == first]
