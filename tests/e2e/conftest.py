"""Real processes, started by the console command a user types, killed as only a test would."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from common.ports import hold_port

AQUATINT = str(Path(sys.executable).parent / "aquatint")
KEY = "e2e-bootstrap-key-0123456789"


def wait_for(condition: Callable[[], bool], *, what: str, within_s: float = 120) -> None:
    """Wait until something outside this process becomes true."""
    end = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {within_s:.0f} s in vain: {what}")
        time.sleep(0.05)


def answers(url: str, *, status: int = 200) -> bool:
    """Whether a GET is answered so."""
    try:
        return httpx.get(url, timeout=2, trust_env=False).status_code == status
    except httpx.HTTPError:
        return False


def gone(pid: int) -> bool:
    """Whether no process has this id (a zombie that nobody waits for counts as gone)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@dataclass
class Started:
    """One process of ours."""

    popen: subprocess.Popen[bytes]
    log: Path
    url: str

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.popen.pid

    def output(self) -> str:
        """What it has printed."""
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """SIGKILL."""
        self.popen.kill()
        self.popen.wait()

    def end(self, number: int = signal.SIGTERM) -> int:
        """A signal, then its exit code."""
        self.popen.send_signal(number)
        return self.popen.wait(60)


@dataclass
class Machine:
    """A home folder and the processes started on it."""

    home: Path
    environment: dict[str, str]
    processes: list[Started] = field(default_factory=list)

    def start(self, *arguments: str, url: str, **more: str) -> Started:
        """`aquatint ARGUMENTS`, in the background. more: environment variables."""
        log = self.home / f"{len(self.processes)}-{arguments[0]}.out"
        with log.open("wb") as out:
            popen = subprocess.Popen(
                [AQUATINT, *arguments], stdout=out, stderr=out, stdin=subprocess.DEVNULL, env=self.environment | more
            )
        self.processes.append(Started(popen, log, url))
        return self.processes[-1]

    def run(self, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        """`aquatint ARGUMENTS`, to its end."""
        return subprocess.run(
            [AQUATINT, *arguments], env=self.environment | more, capture_output=True, text=True, timeout=300, check=False
        )

    def up(self, **more: str) -> Started:
        """`aquatint up`, until it says that it is ready."""
        port = hold_port()
        up = self.start("up", "--port", str(port), url=f"http://127.0.0.1:{port}", **more)
        wait_for(lambda: "Aquatint is ready" in up.output() or up.popen.poll() is not None, what="aquatint up")
        assert up.popen.poll() is None, up.output()
        return up

    def router(self, **more: str) -> Started:
        """A router alone, until it lives."""
        port = hold_port()
        router = self.start("router", "--port", str(port), url=f"http://127.0.0.1:{port}", **more)
        wait_for(lambda: answers(f"{router.url}/health") or router.popen.poll() is not None, what="the router")
        assert router.popen.poll() is None, router.output()
        return router

    def node(self, name: str, token: str = "node-token-0123456789", **more: str) -> Started:
        """A node, until it is ready."""
        port = hold_port()
        more = {"AQUATINT__NODE__TOKEN": token} | more
        node = self.start("node", "--port", str(port), "--name", name, url=f"http://127.0.0.1:{port}", **more)
        wait_for(lambda: answers(f"{node.url}/ready") or node.popen.poll() is not None, what=f"node {name}")
        assert node.popen.poll() is None, node.output()
        return node


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine on which Aquatint was just installed, with a SQLite catalog."""
    yield from new_machine(tmp_path, {})


@pytest.fixture
def machine_on(tmp_path: Path, catalog_url: str) -> Iterator[Machine]:
    """The same, once for each kind of catalog."""
    yield from new_machine(tmp_path, {"AQUATINT__DATABASE_URL": catalog_url})


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Machine, Started]]:
    """A machine with one `aquatint up` for all tests that only ask: each start costs fifteen seconds of a core."""
    machines = new_machine(tmp_path_factory.mktemp("house"), {})
    machine = next(machines)
    try:
        yield machine, machine.up()
    finally:
        next(machines, None)


@pytest.fixture(scope="session")
def up(house: tuple[Machine, Started]) -> Started:
    """The server of that machine."""
    return house[1]


def new_machine(home: Path, more: dict[str, str], kind: type[Machine] = Machine) -> Iterator[Machine]:
    """One machine; what was started on it ends with the iterator."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AQUATINT")}
    environment = kept | {
        "AQUATINT_HOME": str(home),
        "AQUATINT_BOOTSTRAP_KEY": KEY,
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
        **more,
    }
    machine = kind(home, environment)
    yield machine
    for process in machine.processes:
        if process.popen.poll() is None:
            process.popen.terminate()
    for process in machine.processes:
        try:
            process.popen.wait(45)
        except subprocess.TimeoutExpired:
            process.kill()
