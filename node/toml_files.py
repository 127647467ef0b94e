"""TOML files that operators put beside models, read within bounds: whoever can put a model there can put these there too."""

import tomllib
from pathlib import Path
from typing import Any

from node.diffusers_folder import check_inside
from node.safetensors_header import CheckpointRefused

MAX_BYTES = 64 * 1024


def read_toml(path: Path, root: Path) -> dict[str, Any]:
    """What a file says; nothing where there is none.

    root: the models folder that symbolic links must not lead out of.
    Raises: CheckpointRefused, naming the file; OSError.
    """
    if not path.is_file():
        return {}
    check_inside(path, root)
    if (size_bytes := path.stat().st_size) > MAX_BYTES:
        raise CheckpointRefused(path, f"{size_bytes} bytes; at most {MAX_BYTES} are read of a sidecar")
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointRefused(path, f"not a valid sidecar: {error}") from None
