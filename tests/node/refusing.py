"""`python -m tests.node.refusing FOLDER`: looks at every file and folder in FOLDER as a models folder of its own, each in a
process that may use 2 s of a processor and 256 MB, and prints as JSON what came of it.

The kernel holds the bounds (RLIMIT_CPU, RLIMIT_AS), so that a busy machine is no excuse and none is needed.
"""

import json
import os
import resource
import signal
import sys
from pathlib import Path

from node.models import find_models

CPU_S = 2
MEMORY_BYTES = 256 * 1024 * 1024


def bound() -> None:
    """From here on: so much more than this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit_bytes = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit_bytes, limit_bytes))
    # The kernel counts whole seconds; a fork begins with none.
    limit_s = int(used.ru_utime + used.ru_stime) + CPU_S
    resource.setrlimit(resource.RLIMIT_CPU, (limit_s, limit_s))


def look(folder: Path) -> str:
    """The reasons for what was refused; what ended the look where it was not a refusal."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            bound()
            found = find_models([folder])
            told = "; ".join(map(str, found.refused)) or f"READ: {sorted(found.by_name)}"
        except BaseException as error:
            told = f"FAILED: {type(error).__name__}"
        os.write(writer, told.encode()[:4000])
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        told = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    ended_by = os.waitstatus_to_exitcode(status)
    return told if ended_by == 0 else f"FAILED: {signal.Signals(-ended_by).name}"


def main() -> None:
    """See the module."""
    # The first look imports what looking needs, which is no cost of a file.
    empty = Path(sys.argv[1]) / "empty"
    empty.mkdir()
    find_models([empty])
    empty.rmdir()
    print(json.dumps({each.name: look(each) for each in sorted(Path(sys.argv[1]).iterdir())}))


if __name__ == "__main__":
    main()
