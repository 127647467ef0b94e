"""The installed openai package, as a program of its own."""

import subprocess
import sys
from pathlib import Path

from tests.contract.programs import contract_server
from tests.router.conftest import USER_KEY

HANGS_AFTER_S = 280
"""A bound for what hangs, not for what is slow."""


def test_the_installed_sdk_finds_everything_as_it_expects(tmp_path: Path):
    program = Path(__file__).with_name("python_sdk.py")

    with contract_server(tmp_path) as server:
        command = [sys.executable, program, f"{server.url}/v1", USER_KEY, server.node]
        checked = subprocess.run(command, capture_output=True, text=True, timeout=HANGS_AFTER_S, check=False)

    assert checked.returncode == 0, checked.stderr
    assert "all as it expects" in checked.stdout
