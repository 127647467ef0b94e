"""Where checkpoints lie below a models folder, and what each is called there.

Beside plain folders, three layouts are read as they are: Hugging Face's cache (`models--ORG--NAME/snapshots/HASH/`, whose
files are links into `blobs/`), and those of ComfyUI and A1111 (a folder each for checkpoints, text encoders, LoRAs ...).
ComfyUI's `extra_model_paths.yaml` stands for the folders it names. Nothing is ever written there.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from node.controls import FOLDERS as CONTROLS
from node.diffusers_folder import INDEX, PICKLE_SUFFIXES
from node.image_prompts import ADAPTERS, ENCODERS
from node.loras import FOLDERS as LORAS
from node.safetensors_header import CheckpointRefused
from node.tiny_vaes import FOLDERS as TINY_VAES
from node.upscalers import FOLDERS as UPSCALERS

MAX_DEPTH = 4
"""Folders below a models folder that are looked into: `organisation/model` and two more."""
MAX_PATHS_BYTES = 64 * 1024
"""Of an extra_model_paths.yaml; ComfyUI's own example has 2 kB."""

MODEL_FOLDERS = frozenset({"checkpoints", "diffusion_models", "unet", "diffusers", "Stable-diffusion"})
"""ComfyUI's and A1111's folders of what this node serves. Their names are no part of a model's."""
OTHER_FOLDERS = frozenset(
    {
        "audio_encoders",
        "BSRGAN",
        "clip",
        "clip_vision",
        "Codeformer",
        "controlnet",
        "ControlNet",
        "embeddings",
        "ESRGAN",
        "GFPGAN",
        "gligen",
        "hypernetworks",
        "LDSR",
        "Lora",
        "loras",
        "model_patches",
        "photomaker",
        "RealESRGAN",
        "style_models",
        "SwinIR",
        "text_encoders",
        "upscale_models",
        "vae",
        "VAE",
        "vae_approx",
        "VAE-approx",
    }
)
"""Their folders of parts and extras, which are not looked into: every file there would be told as refused."""
_CACHED = re.compile(r"models--(?P<organisation>[^-].*?)--(?P<name>.+)|models--(?P<alone>[^-].*)")
_HASH = re.compile(r"[0-9a-f]{40}", re.ASCII)


def folders_of(root: Path) -> list[Path]:
    """The models folders that an entry of the settings stands for.

    Raises: CheckpointRefused: neither a folder nor a file of paths.
    """
    if root.suffix in (".yaml", ".yml") and root.is_file():
        return _extra_paths(root)
    if not root.is_dir():
        raise CheckpointRefused(root, "no such folder")
    return [root]


def candidates(root: Path) -> list[Path]:
    """Diffusers folders and model files below `root`, in the order of their names."""
    if _of_extras(root):
        return []
    sorted_by_kind = any((root / name).is_dir() for name in MODEL_FOLDERS)
    return _below(root, MAX_DEPTH, OTHER_FOLDERS if sorted_by_kind else frozenset())


def public_name(path: Path, root: Path) -> str:
    """What a checkpoint is called unless its sidecar says otherwise: the path below the models folder, no ending.

    Of Hugging Face's cache, `ORG/NAME`; of ComfyUI and A1111, the path below the folder of its kind.
    """
    plain = path if path.is_dir() else path.with_suffix("")
    if (cached := _name_in_cache(plain)) is not None:
        return cached
    if plain == root:
        return root.name
    parts = plain.relative_to(root).parts
    return "/".join(parts[1:] if len(parts) > 1 and parts[0] in MODEL_FOLDERS else parts)


def is_cached(path: Path) -> bool:
    """Whether a checkpoint lies in Hugging Face's cache, which only its own tools may change: the files are links."""
    return _name_in_cache(path) is not None


def _name_in_cache(path: Path) -> str | None:
    for place, part in enumerate(path.parts[:-2]):
        cached = _CACHED.fullmatch(part)
        if cached and path.parts[place + 1] == "snapshots":
            name = [cached["alone"]] if cached["alone"] else [cached["organisation"], cached["name"]]
            return "/".join((*name, *path.parts[place + 3 :]))
    return None


def _of_extras(folder: Path) -> bool:
    """Whether what lies there goes with checkpoints and is none."""
    return any(kind.hold(folder) for kind in (LORAS, CONTROLS, UPSCALERS, TINY_VAES, ADAPTERS, ENCODERS))


def _below(folder: Path, depth: int, left_out: frozenset[str]) -> list[Path]:
    if (folder / INDEX).exists():
        return [folder]
    if (folder / "snapshots").is_dir() and (folder / "blobs").is_dir():
        return _cached(folder)
    found: list[Path] = []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith(".") or entry.name in left_out or _of_extras(entry):
            continue
        if entry.is_dir():
            # A link to a folder is only followed when it is a checkpoint, so that a loop of links ends.
            if depth and (not entry.is_symlink() or (entry / INDEX).exists()):
                found += _below(entry, depth - 1, frozenset())
        elif entry.suffix.lower() in {".safetensors", ".gguf", *PICKLE_SUFFIXES}:
            found.append(entry)
    return found


def _cached(repository: Path) -> list[Path]:
    """The diffusers folder of one repository of Hugging Face's cache: the snapshot that `main` is, else the newest.

    Repositories of other kinds, language models mostly, are passed over.
    """
    snapshots = repository / "snapshots"
    main = repository / "refs" / "main"
    if main.is_file() and (said := _HASH.match(_beginning(main))):
        chosen = [snapshots / said[0]]
    else:
        chosen = sorted((each for each in snapshots.iterdir() if each.is_dir()), key=lambda each: each.stat().st_mtime)[-1:]
    return [each for each in chosen if (each / INDEX).exists()]


def _beginning(file: Path) -> str:
    with file.open("rb") as opened:
        return opened.read(64).decode("ascii", "replace")


def _extra_paths(file: Path) -> list[Path]:
    """The folders of an extra_model_paths.yaml that may hold what this node serves."""
    import yaml

    if file.stat().st_size > MAX_PATHS_BYTES:
        raise CheckpointRefused(file, f"more than {MAX_PATHS_BYTES} bytes")
    try:
        programs = yaml.safe_load(file.read_bytes()) or {}
    except (yaml.YAMLError, RecursionError) as error:
        raise CheckpointRefused(file, f"not YAML ({type(error).__name__})") from None
    if not isinstance(programs, dict) or not all(isinstance(each, dict) for each in programs.values()):
        raise CheckpointRefused(file, "expected a table of paths for each program")
    return [folder for program in programs.values() for folder in _of_program(file, program)]


def _of_program(file: Path, paths: dict[Any, Any]) -> Sequence[Path]:
    wanted = ["base_path", *sorted(MODEL_FOLDERS)]
    texts = {name: paths[name] for name in wanted if paths.get(name) is not None}
    if odd := [name for name, text in texts.items() if not isinstance(text, str)]:
        raise CheckpointRefused(file, f"{odd[0]!r} must be a text")
    # As ComfyUI does: relative to the file, `~` for the home, several folders on lines of their own.
    base = file.parent / Path(texts.pop("base_path", "")).expanduser()
    folders = [base / Path(line.strip()).expanduser() for text in texts.values() for line in text.splitlines() if line.strip()]
    return list(dict.fromkeys(folders))
