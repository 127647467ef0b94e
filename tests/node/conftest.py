"""Tiny checkpoints of every family, written once a run, whatever workers it has, by a process of its own."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from filelock import FileLock

from node.models import Models, find_models

ROOT = Path(__file__).parents[2]


def written(module: str, factory: pytest.TempPathFactory) -> Path:
    """The folder that a module of tests.checkpoints fills; by the first worker of pytest-xdist that asks for it."""
    own = factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / module
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            begun = Path(tempfile.mkdtemp(dir=folder.parent))
            command = [sys.executable, "-m", f"tests.checkpoints.{module}", str(begun)]
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=600)
            begun.rename(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with sd15, sdxl, sdxl-turbo and z-image, for all to read. Tests copy what they change."""
    return written("tiny", tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_models(tiny: Path) -> Models:
    """The same, as the node finds them."""
    return find_models([tiny])


@pytest.fixture(scope="session")
def families(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with one checkpoint of each larger family."""
    return written("families", tmp_path_factory)
