"""Starts the contract's server and runs programs against it. `python -m tests.contract.programs COMMAND ...` does both:
`{url}` and `{key}` in the command stand for the server's address and a key."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.conftest import free_port
from tests.router.conftest import USER_KEY


@contextmanager
def contract_server(home: Path) -> Iterator[str]:
    """The server as a process; its address."""
    port = free_port()
    command = [sys.executable, "-m", "tests.contract.server", str(port), str(home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()


def main() -> int:
    """The exit code of the command."""
    with tempfile.TemporaryDirectory() as home, contract_server(Path(home)) as url:
        command = [part.replace("{url}", f"{url}/v1").replace("{key}", USER_KEY) for part in sys.argv[1:]]
        return subprocess.run(command, check=False, timeout=300).returncode


if __name__ == "__main__":
    sys.exit(main())
