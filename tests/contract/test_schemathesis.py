"""What the OpenAPI document promises, tried by schemathesis with all of its checks on every operation."""

import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from tests.contract.programs import Server
from tests.contract.server import MODEL
from tests.router.conftest import ADMIN_KEY

EXAMPLES = 5
"""Of each kind, per operation, in fuzzing; the phase before tries every bound of every field once."""


# A minute of work for one core, more where others work too.
@pytest.mark.timeout(900)
def test_the_document_keeps_every_promise(server: Server, tmp_path: Path):
    program = Path(sys.executable).with_name("schemathesis")
    authorization = {"authorization": f"Bearer {ADMIN_KEY}"}
    command = [program, "run", f"{server.url}/openapi.json", "--checks", "all", "--max-examples", str(EXAMPLES)]
    # The same cases in every run. No check is left out; schema_hooks says which few cases are.
    command += ["--generation-deterministic", "--workers", "1", "--no-color", "--continue-on-failure"]
    # NUL is refused everywhere, as no column can hold it; the corpus has it.
    command += ["--generation-allow-x00", "false"]
    command += ["--header", f"Authorization: {authorization['authorization']}"]
    root = Path(__file__).parents[2]
    environ = os.environ | {"SCHEMATHESIS_HOOKS": "tests.contract.schema_hooks", "PYTHONPATH": str(root)}

    # Pictures at once: there are hundreds.
    httpx.post(f"{server.node}/fake", json={"mode": "none", "times": 0, "seconds": 0}).raise_for_status()

    tried = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=800, check=False)

    assert tried.returncode == 0, tried.stdout[-20_000:] + tried.stderr
    selected = re.search(r"Tested: (\d+)", tried.stdout)
    assert selected is not None
    document = httpx.get(f"{server.url}/openapi.json").json()
    assert int(selected[1]) == sum(len(methods) for methods in document["paths"].values()) > 20
    # Nothing passed only because the node or the key was gone.
    with httpx.Client(base_url=server.url, headers=authorization) as client:
        assert client.post("/v1/images/generations", json={"model": MODEL, "prompt": "x"}).status_code == 200
        assert client.get("/admin/keys").status_code == 200
