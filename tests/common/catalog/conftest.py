"""What the tests of the catalog share."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
