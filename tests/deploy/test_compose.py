"""docker-compose.yml is valid, names only settings that exist, and starts things in an order that can be."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from common.settings import BOOTSTRAP_KEY_VARIABLE
from node.settings import NodeSettings
from router.settings import RouterSettings
from tests.deploy.conftest import ROOT, Tool, read_yaml
from tests.deploy.dockerfile import stages

SERVICES: dict[str, dict[str, Any]] = read_yaml("docker-compose.yml")["services"]
OURS = sorted(name for name, service in SERVICES.items() if "build" in service)


def _environment(name: str, secrets: Path) -> dict[str, str]:
    """What a service is told: by its image, over it by the compose file; with its secrets in another folder."""
    build = SERVICES[name]["build"]
    told: dict[str, str] = {}
    for step in stages(ROOT / build["dockerfile"], {})[-1].steps:
        if step.name == "ENV":
            told |= dict(word.split("=", 1) for word in step.words())
    told |= SERVICES[name]["environment"]
    defaults = {key: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value) for key, value in told.items()}
    return {key: value.replace("/secrets/", f"{secrets}/") for key, value in defaults.items()}


def test_the_file_follows_the_compose_specification(tool: Tool):
    result = tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml")

    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("name", OURS)
def test_what_our_services_are_told_is_a_valid_configuration(name: str, secrets: Path):
    environment = _environment(name, secrets)

    router, node = RouterSettings.load(environment), NodeSettings.load(environment)

    assert router == RouterSettings.load({key: value for key, value in environment.items() if "NODE" not in key})
    if "AQUATINT__DATABASE_URL" in environment:
        password = (secrets / "database-password").read_text()
        assert router.catalog_url == f"postgresql+asyncpg://aquatint:{password}@db:5432/aquatint"
    if name.startswith("node"):
        assert node.node.token == (secrets / "node-token").read_text()
        assert node.node.host == "0.0.0.0"


@pytest.mark.parametrize("name", SERVICES)
def test_every_secret_that_is_asked_for_is_made(name: str, secrets: Path):
    asked = set(re.findall(r"/secrets/([\w.-]+)", str(SERVICES[name])))

    assert asked <= {path.name for path in secrets.iterdir()}
    assert not asked or any(str(each).startswith("secrets:/secrets") for each in SERVICES[name]["volumes"])


def test_secrets_are_made_once_and_differ(secrets: Path):
    before = {path.name: path.read_text() for path in secrets.iterdir()}

    subprocess.run(["sh", ROOT / "deploy/make-secrets.sh", secrets], check=True)

    assert {path.name: path.read_text() for path in secrets.iterdir()} == before
    assert len(set(before.values())) == len(before)
    assert BOOTSTRAP_KEY_VARIABLE + "_FILE" in SERVICES["router"]["environment"]


@pytest.mark.parametrize("name", SERVICES)
def test_what_waits_for_health_waits_for_a_service_that_can_tell(name: str):
    for other, how in SERVICES[name].get("depends_on", {}).items():
        service = SERVICES[other]
        if how["condition"] == "service_healthy":
            file = service.get("build", {}).get("dockerfile")
            assert "healthcheck" in service or "HEALTHCHECK" in (ROOT / file).read_text()
        else:
            assert (how["condition"], service["restart"]) == ("service_completed_successfully", "no")
        # A service of a profile is not there unless the profile is asked for.
        assert set(service.get("profiles", [])) <= set(SERVICES[name].get("profiles", [])) or how["required"] is False


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned_and_mounted_files_exist(name: str):
    service = SERVICES[name]

    assert re.search(r":(\$\{AQUATINT_VERSION|v?\d+\.\d+)", service["image"])
    for mount in service.get("volumes", []):
        source = mount.split(":")[0]
        assert not source.startswith("./") or (ROOT / source).exists(), source


@pytest.mark.parametrize("name", OURS)
def test_our_services_run_confined_and_get_the_time_they_need_to_end(name: str):
    service = SERVICES[name]

    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    if service["restart"] != "no":
        drain_s = max(RouterSettings().router.drain_s, NodeSettings().node.drain_s)
        assert int(service["stop_grace_period"].removesuffix("s")) >= drain_s + 10
