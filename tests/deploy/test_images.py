"""The Dockerfiles are clean, pinned, and what they build runs."""

import re
import subprocess
import sys
import tomllib

import pytest

from tests.deploy.conftest import ROOT, Tool, slow
from tests.deploy.dockerfile import needed, stages
from tests.deploy.image import overlays

FILES = ("Dockerfile.router", "Dockerfile.node")
BUILT_WITHIN_S = 900
PICTURE = """
import base64, json, urllib.request
body = json.dumps({"prompt": "a red circle", "size": "64x64", "response_format": "b64_json"}).encode()
headers = {"authorization": "Bearer image-test-token-0123", "content-type": "application/json"}
request = urllib.request.Request("http://127.0.0.1:8001/v1/images/generations", body, headers)
picture = base64.b64decode(json.load(urllib.request.urlopen(request, timeout=120))["data"][0]["b64_json"])
print("PICTURE", picture[1:4].decode())
"""


def test_hadolint_finds_nothing(tool: Tool):
    result = tool("hadolint", *FILES)

    assert (result.returncode, result.stdout) == (0, "")


@pytest.mark.parametrize("file", FILES)
def test_an_image_is_built_from_what_dockerignore_lets_through(file: str):
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copies = [step for stage in stages(ROOT / file, {}) for step in stage.steps if step.name == "COPY" and not step.flags]

    sources = {source for step in copies for source in step.words()[:-1]}
    assert sources, f"{file} copies nothing"
    assert sources <= set(allowed)


@pytest.mark.parametrize(("arguments", "built"), [({}, "sdcpp-no"), ({"SDCPP": "yes"}, "sdcpp-yes")])
def test_stable_diffusion_cpp_is_built_only_when_asked_for(arguments: dict[str, str], built: str):
    names = [stage.name for stage in needed(stages(ROOT / "Dockerfile.node", arguments))]

    assert [name for name in names if name.startswith("sdcpp-")] == [built]


def test_every_package_is_pinned_to_a_version_the_project_allows():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(
        line.split("==") for line in (ROOT / "deploy/constraints.txt").read_text().splitlines() if not line.startswith("#")
    )

    from packaging.requirements import Requirement

    for text in [
        *project["dependencies"],
        *project["optional-dependencies"]["node"],
        *project["optional-dependencies"]["otel"],
    ]:
        requirement = Requirement(text)
        version = pins.get(re.sub(r"[-_.]+", "-", requirement.name).lower(), "")
        assert version, f"deploy/constraints.txt names no version of {text}"
        assert requirement.specifier.contains(version), f"{text}, but the images take {version}"


def _tried(file: str, *arguments: str) -> str:
    """The output of building and running an image, as far as that goes without a container engine."""
    slow()
    if not overlays():
        pytest.skip("this machine lets nobody mount an overlay, so no image can be tried without a container engine")
    command = [sys.executable, "-m", "tests.deploy.image", file, *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=BUILT_WITHIN_S, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


@pytest.mark.timeout(BUILT_WITHIN_S + 30)
def test_the_routers_image_runs_without_rights_on_a_read_only_root_and_holds_no_torch():
    output = _tried("Dockerfile.router", "--exec", "python -c 'import router.app'; ! python -c 'import torch' 2>/dev/null")

    assert re.search(r"^HEALTHY after .* as 10001:10001 on a read-only root$", output, re.MULTILINE)
    assert "STOPPED with 0" in output


@pytest.mark.timeout(BUILT_WITHIN_S + 30)
def test_the_nodes_image_makes_a_picture_without_rights_on_a_read_only_root():
    token = ("--env", "AQUATINT__NODE__TOKEN=image-test-token-0123", "--env", "OMP_NUM_THREADS=1")

    output = _tried("Dockerfile.node", "--build-arg", "TORCH_CPU_INDEX=", *token, "--exec", f"python -c '{PICTURE}'")

    assert re.search(r"^HEALTHY after .* as 10001:10001 on a read-only root$", output, re.MULTILINE)
    assert "PICTURE PNG" in output
    assert "STOPPED with 0" in output
