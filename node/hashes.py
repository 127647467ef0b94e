"""sha256 of model files: read once, and remembered for as long as size and time of change stay what they were."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

BLOCK_BYTES = 4 * 1024 * 1024
AUTOV2_DIGITS = 10

OnBytes = Callable[[int], None]
"""Called with the number of bytes read since the last call."""


def autov2(sha256: str) -> str:
    """The short name CivitAI shows for every file: the first ten digits, in capitals."""
    return sha256[:AUTOV2_DIGITS].upper()


def digest(path: Path, on_bytes: OnBytes = lambda count: None) -> str:
    """sha256 of a file, in hexadecimal. Raises: OSError."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            found.update(block)
            on_bytes(len(block))
    return found.hexdigest()


class Hashes:
    """What was read before, in one small JSON file. Losing it costs time only."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def known(self, file: Path) -> str | None:
        """The hash of a file as it was last read; None when it was never, or has changed since. Raises: OSError."""
        return self._read().get(_key(file))

    def of(self, file: Path, on_bytes: OnBytes = lambda count: None) -> str:
        """The hash of a file. Blocking: reads the whole file once. Raises: OSError."""
        return self.known(file) or self.renew(file, on_bytes)

    def renew(self, file: Path, on_bytes: OnBytes = lambda count: None) -> str:
        """Read the file again, whatever is known of it, and remember. Raises: OSError."""
        key = _key(file)
        found = digest(file, on_bytes)
        # Read again right before: another process may have added to it meanwhile.
        known = self._read() | {key: found}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._path.with_name(f"{self._path.name}.tmp")
        unfinished.write_text(json.dumps(known, indent=0, sort_keys=True))
        unfinished.replace(self._path)
        return found

    def _read(self) -> dict[str, str]:
        try:
            known: dict[str, str] = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return known


def _key(file: Path) -> str:
    stat = file.stat()
    return f"{stat.st_size}:{stat.st_mtime_ns}:{file.resolve()}"
