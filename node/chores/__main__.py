"""One chore, as a process: `python -m node.chores ORDER`, a `common.node_api.ChoreOrder` as JSON.

Each line on stdout is what has changed of its `ChoreStatus`; the last has a state that is final.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from common.lifeline import follow_parent
from common.node_api import ChoreKind, ChoreOrder, ChoreState
from node.settings import NodeSettings

TELL_EVERY_S = 0.5


class Meter:
    """Counts bytes, and tells of them now and then."""

    def __init__(self, total_bytes: int | None) -> None:
        self._done = 0
        self._total = total_bytes
        self._told_s = 0.0

    def add(self, count: int) -> None:
        """So many more."""
        self._done += count
        if time.monotonic() - self._told_s >= TELL_EVERY_S:
            self._told_s = time.monotonic()
            tell(done=self._done, total=self._total)


def tell(**changed: Any) -> None:
    """One line."""
    print(json.dumps(changed), flush=True)


def pull(order: ChoreOrder, settings: NodeSettings) -> dict[str, Any]:
    """Bring a checkpoint into the first models folder; one that is there already is left as it is."""
    from node import pulling

    assert order.source is not None
    source = pulling.parse_source(order.source)
    folder, meter = settings.pull_dir, Meter(None)
    try:
        if isinstance(source, pulling.HubSource):
            pulled = pulling.pull_hub(source, folder, token=os.environ.get("HF_TOKEN"))
        else:
            pulled = pulling.pull_civitai(source, folder, token=os.environ.get("CIVITAI_TOKEN"), on_bytes=meter.add)
    except pulling.AlreadyThere as there:
        return {"path": str(there.path), "bytes": _size_of(there.path)}
    return {"path": str(pulled.path), "bytes": pulled.stored_bytes}


def read_hashes(order: ChoreOrder, settings: NodeSettings) -> dict[str, Any]:
    """Read the weight files whose hashes are not known; or all, and name those that have changed in silence."""
    from node.checkpoints import scan, weight_files
    from node.hashes import Hashes

    hashes = Hashes(settings.hashes_path)
    checkpoints = scan(settings.models_dirs).checkpoints
    files = sorted({file for checkpoint in checkpoints for file in weight_files(checkpoint)})
    wanted = [file for file in files if order.verify or hashes.known(file) is None]
    meter, changed = Meter(sum(file.stat().st_size for file in wanted)), []
    for file in wanted:
        before = hashes.known(file)
        if hashes.renew(file, meter.add) != before and before is not None:
            changed.append(str(file))
    return {"files": len(files), "read": len(wanted), "changed": changed}


def _size_of(path: Path) -> int:
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(file.stat().st_size for file in files)


def main() -> None:
    """The chore that the first argument orders."""
    follow_parent()
    order = ChoreOrder.model_validate_json(sys.argv[1])
    work = {ChoreKind.PULL: pull, ChoreKind.HASHES: read_hashes}[order.kind]
    from node.pulling import PullFailed

    try:
        result = work(order, NodeSettings.load())
    except (PullFailed, OSError) as error:
        tell(state=ChoreState.FAILED, error=str(error))
    else:
        tell(state=ChoreState.SUCCEEDED, result=result)


if __name__ == "__main__":
    main()
