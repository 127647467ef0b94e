"""Tiny checkpoints of every family, written once a session by a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from node.models import Models, find_models

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with sd15, sdxl, sdxl-turbo and z-image. Tests copy what they change."""
    folder = tmp_path_factory.mktemp("tiny")
    subprocess.run(
        [sys.executable, "-m", "tests.checkpoints.tiny", str(folder)], cwd=ROOT, check=True, capture_output=True, timeout=120
    )
    return folder


@pytest.fixture(scope="session")
def tiny_models(tiny: Path) -> Models:
    """The same, as the node finds them."""
    return find_models([tiny])
