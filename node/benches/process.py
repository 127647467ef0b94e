"""A node as a process of its own home, and how measurements talk to it."""

import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import typer

from common.api_client import ApiError
from common.node_api import NodeStatus
from common.ports import hold_port

READY_WITHIN_S = 300.0


@dataclass(frozen=True, slots=True)
class RunningNode:
    """A node that answers."""

    client: httpx.Client
    pid: int
    home: Path

    def ask(self, body: dict[str, Any]) -> dict[str, Any]:
        """Send a generation, again while the queue is full; gives the answer. Raises: ApiError."""
        while True:
            answer = self.client.post("/v1/images/generations", json=body)
            if answer.status_code == 429:  # More clients than the node's queue has places.
                time.sleep(0.05)
                continue
            if answer.status_code != 200:
                raise ApiError(f"The node answered {answer.status_code}: {answer.text[:500]}")
            told: dict[str, Any] = answer.json()
            return told

    def status(self) -> NodeStatus:
        """What it says of itself."""
        return NodeStatus.model_validate_json(self.client.get("/node/v1/status").content)

    def cancel(self, run_id: str) -> None:
        """End a run."""
        self.client.post("/node/v1/cancel", json={"run_id": run_id}).raise_for_status()

    def peak_bytes(self) -> int | None:
        """The largest resident set among the node's children, which is its worker's; None where there is no /proc."""
        peaks = []
        for children in Path(f"/proc/{self.pid}/task").glob("*/children"):
            for child in children.read_text().split():
                status = Path(f"/proc/{child}/status").read_text()
                peaks += [1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")]
        return max(peaks, default=None)


@contextmanager
def running_node(
    models: list[Path], kind: str, threads: int, settings: Mapping[str, str] | None = None
) -> Iterator[RunningNode]:
    """A node that serves some folders on a device, until the block ends. settings: environment variables beside."""
    port, token = hold_port(), secrets.token_hex(16)
    with (
        tempfile.TemporaryDirectory() as home,
        httpx.Client(
            base_url=f"http://127.0.0.1:{port}", headers={"authorization": f"Bearer {token}"}, timeout=3600, trust_env=False
        ) as client,
        (Path(home) / "node.log").open("wb") as log,
    ):
        own = {"AQUATINT_HOME": home, "AQUATINT__NODE__TOKEN": token, "AQUATINT__NODE__THREADS": str(threads)}
        folders = [part for folder in models for part in ("--models", str(folder.resolve()))]
        with subprocess.Popen(
            [sys.executable, "-m", "node", "--port", str(port), "--device", kind, *folders],
            env=os.environ | own | dict(settings or {}),
            stdout=log,
            stderr=log,
        ) as process:
            try:
                _wait_ready(client, process, Path(log.name))
                yield RunningNode(client, process.pid, Path(home))
            finally:
                process.terminate()


def _wait_ready(client: httpx.Client, process: "subprocess.Popen[bytes]", log: Path) -> None:
    end = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < end and process.poll() is None:
        try:
            if client.get("/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise typer.BadParameter(f"the node did not start; its log ends:\n{log.read_text(errors='replace')[-2000:]}")
