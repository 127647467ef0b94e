"""Files that hold a secret: whole on the disk or not there, for their owner alone, and one for processes that start at once."""

import os
import secrets
from pathlib import Path


def create_once(path: Path, content: bytes) -> None:
    """Make a file, and the folder it is in. One that is there stays: another process was quicker. Raises: OSError."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = _fresh(path, content)
    try:
        # A link appears whole or not at all, and, unlike a rename, does not replace what another process put there first.
        os.link(fresh, path)
    except FileExistsError:
        pass
    finally:
        fresh.unlink()


def replace(path: Path, content: bytes) -> None:
    """Have a file hold something else from one moment to the next. Raises: OSError."""
    _fresh(path, content).replace(path)


def _fresh(path: Path, content: bytes) -> Path:
    """A file beside `path`, on the disk."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    return fresh
