"""A node as a process, and how tests talk to it."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest

from common.node_api import NodeStatus

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-for-tests-only"


@dataclass
class NodeProcess:
    """A running node and how to reach it."""

    url: str
    home: Path
    process: subprocess.Popen[bytes]

    def sdk(self, key: str = TOKEN) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=120)

    def http(self, key: str | None = TOKEN) -> httpx.Client:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=120)

    def status(self) -> NodeStatus:
        with self.http() as client:
            return NodeStatus.model_validate_json(client.get("/node/v1/status").content)

    def running(self) -> str:
        """The id of the run at work, once it has made a step."""
        while True:
            jobs = self.status().jobs
            if jobs and jobs[0].step:
                return jobs[0].run_id

    def idle(self) -> None:
        """Returns when the node holds no run."""
        while self.status().jobs:
            pass


@contextmanager
def running_node(models: Path, home: Path, **settings: str) -> Iterator[NodeProcess]:
    """A node that serves a models folder on a CPU, until the block ends."""
    environment = os.environ | {
        "AQUATINT_HOME": str(home),
        "AQUATINT__NODE__TOKEN": TOKEN,
        "AQUATINT__NODE__MODELS_DIRS": json.dumps([str(models)]),
        "AQUATINT__NODE__MAX_QUEUED": "1",
        "AQUATINT__LOG_FORMAT": "json",
        **settings,
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "node", "--port", "0", "--name", "tester", "--device", "cpu"],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    assert process.stderr is not None
    url, ready = "", False
    for line in process.stderr:
        if not line.startswith(b"{"):
            process.kill()
            pytest.fail(f"the node does not start: {line.decode()}{process.communicate()[1].decode()}")
        event = json.loads(line)
        if "running on" in event["event"]:
            url = event["event"].split()[3]
        ready = ready or event["event"] == "worker_ready"
        if url and ready:
            break
    # Read on, or the pipe fills and the node stops.
    reader = threading.Thread(target=process.stderr.read, daemon=True)
    reader.start()
    yield NodeProcess(url, home, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    reader.join(10)
    process.stderr.close()
