"""What the tests of the catalog share."""

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest

from common.catalog import NewImage, NewRun, new_id


@pytest.fixture
def new_run() -> Callable[..., NewRun]:
    """Makes a run; what is named replaces the usual."""

    def make(**changed: Any) -> NewRun:
        usual: dict[str, Any] = {
            "id": new_id("run"),
            "task": "generation",
            "model": "sdxl-turbo",
            "requested_model": "dall-e-3",
            "prompt": "a large red circle on a blue background",
            "request": {"prompt": "a large red circle on a blue background", "n": 1},
            "key_id": "key_1",
            "request_id": "req_1",
            "source": "router",
            "seed": 7,
            "n": 1,
            "width_px": 512,
            "height_px": 512,
        }
        return NewRun(**usual | changed)

    return make


@pytest.fixture
def new_image() -> Callable[..., NewImage]:
    """Makes an image; what is named replaces the usual."""

    def make(**changed: Any) -> NewImage:
        usual: dict[str, Any] = {
            "index": 0,
            "sha256": "ab" * 32,
            "size_bytes": 3_000_000_000,
            "format": "png",
            "width_px": 512,
            "height_px": 512,
            "seed": 2**33,
        }
        return NewImage(**usual | changed)

    return make


@pytest.fixture
def result(new_image: Callable[..., NewImage]) -> dict[str, Any]:
    """The result of a run with one picture, as `finish` takes it."""
    return {
        "images": [new_image()],
        "effective": {"steps": 4},
        "timings": {"denoise_s": 0.5},
        "answer": {"created": 1},
    }


@pytest.fixture
def child_environment() -> dict[str, str]:
    """The environment of a child process that imports the product."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}


def send(request: Request) -> None:
    with urlopen(request, timeout=30) as answer:
        answer.read()


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that speaks S3's protocol, in a process of its own."""
    log = tmp_path_factory.mktemp("s3") / "log"
    with log.open("wb") as output:
        command = [sys.executable, "-u", "-m", "moto.server", "-p", "0"]
        server = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            following = subprocess.Popen(["tail", "-n", "+1", "-f", str(log)], stdout=subprocess.PIPE, text=True)
            assert following.stdout is not None
            address = next(found[0] for line in following.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
            following.kill()
            following.communicate()
            yield address
        finally:
            server.kill()
            server.wait()


@pytest.fixture
def s3_url(s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    bucket = "b" + hashlib.sha256(str(tmp_path).encode()).hexdigest()[:20]
    send(Request(f"{s3_endpoint}/{bucket}", method="PUT"))
    return f"s3://{bucket}/pictures"
