"""What is deployed, held by the tools that its readers would use.

Where one of them is not installed its tests are skipped, and say so; with TEST_DEPLOY=required, as in the gate, they fail.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent

Tool = Callable[..., subprocess.CompletedProcess[str]]


def missing(what: str) -> None:
    """End a test that needs what is not here: a skip on a laptop, a failure in the gate."""
    if os.environ.get("TEST_DEPLOY") == "required":
        pytest.fail(what)
    pytest.skip(what)


def slow() -> None:
    """Begin a test that takes minutes, or root: in the gate, or where it was asked for."""
    if os.environ.get("TEST_DEPLOY") != "required":
        pytest.skip("TEST_DEPLOY=required runs this too; it takes root, prometheus, and a minute or two")


@pytest.fixture
def tool() -> Tool:
    """`tool("hadolint", "Dockerfile.node")`: its outcome, run in the project's folder."""

    def run(name: str, *arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        beside = Path(sys.executable).parent / name
        found = str(beside) if beside.exists() else shutil.which(name)
        if found is None:
            missing(f"{name} is not installed: pip install -e '.[deploy-test]', and prometheus and kubectl of the system")
        return subprocess.run(
            [str(found), *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False, **more
        )

    return run


def read_yaml(path: str) -> Any:
    """A YAML file of the project."""
    return yaml.safe_load((ROOT / path).read_text())


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """A folder with the secrets of a fleet, as deploy/make-secrets.sh makes them."""
    folder = tmp_path / "secrets"
    subprocess.run(["sh", ROOT / "deploy/make-secrets.sh", folder], check=True)
    return folder
