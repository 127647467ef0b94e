"""Tiny checkpoints of every family, written once a session by a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from node.models import Models, find_models

ROOT = Path(__file__).parents[2]


def _write(module: str, folder: Path) -> Path:
    command = [sys.executable, "-m", f"tests.checkpoints.{module}", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=600)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with sd15, sdxl, sdxl-turbo and z-image. Tests copy what they change."""
    return _write("tiny", tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_models(tiny: Path) -> Models:
    """The same, as the node finds them."""
    return find_models([tiny])


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with one checkpoint of each larger family."""
    return _write("families", tmp_path_factory.mktemp("families"))
