"""Starts the contract's server and runs programs against it. `python -m tests.contract.programs COMMAND ...` does both:
`{url}`, `{key}` and `{node}` in the command stand for the server's address, a key, and the address of its node."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.router.conftest import USER_KEY


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs: the addresses of the router and of its node, and the process id of both."""

    url: str
    node: str
    pid: int


@contextmanager
def contract_server(home: Path) -> Iterator[Server]:
    """The server as a process."""
    command = [sys.executable, "-m", "tests.contract.server", "0", str(home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            addresses = process.stdout.readline().split()
            assert len(addresses) == 2, "the server did not start"
            yield Server(*addresses, process.pid)
        finally:
            process.kill()


def main() -> int:
    """The exit code of the command."""
    with tempfile.TemporaryDirectory() as home, contract_server(Path(home)) as server:
        known = {"{url}": f"{server.url}/v1", "{key}": USER_KEY, "{node}": server.node}
        command = [known.get(part, part) for part in sys.argv[1:]]
        return subprocess.run(command, check=False, timeout=300).returncode


if __name__ == "__main__":
    sys.exit(main())
