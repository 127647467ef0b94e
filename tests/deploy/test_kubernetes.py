"""The manifests are valid, fit together, and tell our processes what they understand."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from node.settings import NodeSettings
from router.settings import RouterSettings
from tests.deploy.conftest import ROOT, Tool
from tests.deploy.dockerfile import stages

OVERLAYS = ("cpu-demo", "gpu")
OLDEST, NEWEST = "1.30", "1.37"
"""Of Kubernetes. Older ones have no `sleep` for preStop."""
CORE = re.compile(r"^(v1|apps/v1|batch/v1|policy/v1|networking\.k8s\.io/v1)$")
CLOSING_S = 10
"""What a process needs beside its drain to close what it has open."""

Objects = list[dict[str, Any]]


@pytest.fixture(params=OVERLAYS)
def objects(request: pytest.FixtureRequest, tool: Tool, secrets: Path, tmp_path: Path) -> Objects:
    """What `kubectl apply -k` would send."""
    folder = Path(shutil.copytree(ROOT / "deploy/kubernetes", tmp_path / "kubernetes", ignore=lambda *_: ["secrets"]))
    shutil.copytree(secrets, folder / request.param / "secrets")
    result = tool("kubectl", "kustomize", str(folder / request.param))
    assert result.returncode == 0, result.stderr
    return list(yaml.safe_load_all(result.stdout))


def _of(objects: Objects, kind: str) -> Objects:
    return [each for each in objects if each["kind"] == kind]


def _pods(objects: Objects) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and pod template of everything that runs."""
    for each in objects:
        if each["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield each["metadata"]["name"], each["spec"]["template"]
        elif each["kind"] == "CronJob":
            yield each["metadata"]["name"], each["spec"]["jobTemplate"]["spec"]["template"]


def _ours(objects: Objects) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Our containers: (spec of the pod, container)."""
    for _, template in _pods(objects):
        spec = template["spec"]
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            if container["image"].startswith("aquatint-"):
                yield spec, container


def _environment(objects: Objects, container: dict[str, Any], secrets: Path) -> dict[str, str]:
    """All that a container is told, with its secrets in another folder."""
    file = "Dockerfile.router" if container["image"].startswith("aquatint-router") else "Dockerfile.node"
    told = {}
    for step in stages(ROOT / file, {})[-1].steps:
        if step.name == "ENV":
            told |= dict(word.split("=", 1) for word in step.words())
    maps = {each["metadata"]["name"]: each["data"] for each in _of(objects, "ConfigMap")}
    for source in container.get("envFrom", []):
        told |= maps[source["configMapRef"]["name"]]
    told |= {each["name"]: each.get("value", "from-the-pod") for each in container.get("env", [])}
    return {name: value.replace("/secrets/", f"{secrets}/") for name, value in told.items()}


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_kubernetes_knows_every_field(objects: Objects, tool: Tool, tmp_path: Path, version: str):
    core = [each for each in objects if CORE.match(each["apiVersion"])]
    others = {each["kind"] for each in objects} - {each["kind"] for each in core}
    assert len(core) > 10
    assert others <= {"ServiceMonitor", "ScaledObject"}
    file = tmp_path / "core.yaml"
    file.write_text(yaml.safe_dump_all(core))

    result = tool("kubernetes-validate", "--strict", "-k", version, str(file))

    assert result.returncode == 0, result.stdout + result.stderr


def test_what_our_containers_are_told_is_a_valid_configuration(objects: Objects, secrets: Path):
    told = [_environment(objects, container, secrets) for _, container in _ours(objects)]

    assert len(told) == 6
    for environment in told:
        RouterSettings.load(environment)
        NodeSettings.load(environment)


def test_a_pod_gets_the_time_its_process_takes_to_drain(objects: Objects, secrets: Path):
    graces = {}
    for name, template in _pods(objects):
        spec = template["spec"]
        main = spec["containers"][0]
        if main["name"] not in ("router", "node"):
            continue
        environment = _environment(objects, main, secrets)
        drain_s = (
            RouterSettings.load(environment).router.drain_s
            if main["name"] == "router"
            else NodeSettings.load(environment).node.drain_s
        )
        before_s = main.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        graces[name] = spec["terminationGracePeriodSeconds"] - before_s - drain_s

    assert set(graces) == {"aquatint-router", "aquatint-node"}
    assert min(graces.values()) >= CLOSING_S


def test_no_pod_of_ours_is_told_the_addresses_of_services_by_variables(objects: Objects):
    specs = [spec for spec, _ in _ours(objects)]

    assert specs
    assert {spec["enableServiceLinks"] for spec in specs} == {False}


def test_our_containers_have_no_rights_and_a_read_only_root(objects: Objects):
    for spec, container in _ours(objects):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["automountServiceAccountToken"] is False
        rights = container["securityContext"]
        assert (rights["readOnlyRootFilesystem"], rights["allowPrivilegeEscalation"]) == (True, False)
        assert rights["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"]


def test_every_selector_finds_what_it_is_for(objects: Objects):
    labels = [template["metadata"]["labels"] for _, template in _pods(objects)]
    services = [each["metadata"].get("labels", {}) for each in _of(objects, "Service")]
    selectors = [(each["spec"]["selector"], labels) for each in _of(objects, "Service")]
    selectors += [(each["spec"]["selector"]["matchLabels"], labels) for each in _of(objects, "PodDisruptionBudget")]
    selectors += [(each["spec"]["podSelector"]["matchLabels"], labels) for each in _of(objects, "NetworkPolicy")]
    selectors += [(each["spec"]["selector"]["matchLabels"], services) for each in _of(objects, "ServiceMonitor")]

    for selector, among in selectors:
        assert any(selector.items() <= each.items() for each in among), selector


def test_nodes_are_reached_by_routers_and_prometheus_only(objects: Objects):
    (policy,) = [each["spec"] for each in _of(objects, "NetworkPolicy") if each["metadata"]["name"] == "aquatint-node"]
    (rule,) = policy["ingress"]

    sources = [each["podSelector"]["matchLabels"]["app.kubernetes.io/name"] for each in rule["from"]]

    assert sources == ["aquatint-router", "prometheus"]
    assert policy["policyTypes"] == ["Ingress"]
    assert rule["ports"] == [{"port": "http"}]


def test_a_node_itself_never_sees_the_administrators_key(objects: Objects):
    (spec,) = [template["spec"] for name, template in _pods(objects) if name == "aquatint-node"]
    volumes = {each["name"]: each for each in spec["volumes"]}
    (mount,) = [each for each in spec["containers"][0]["volumeMounts"] if each["mountPath"] == "/secrets"]

    items = {each["key"] for each in volumes[mount["name"]]["secret"]["items"]}

    assert "api-key" not in items
    assert "node-token" in items


def test_every_secret_that_is_asked_for_is_in_the_secret(objects: Objects, secrets: Path):
    (secret,) = _of(objects, "Secret")
    names = set(re.findall(r"/secrets/([\w-]+)", str([container for _, container in _ours(objects)])))
    names |= set(re.findall(r"/secrets/([\w-]+)", str(_of(objects, "ConfigMap"))))

    assert names
    assert names <= set(secret["data"])
    mounted = [v["secret"]["secretName"] for _, t in _pods(objects) for v in t["spec"]["volumes"] if "secret" in v]
    assert set(mounted) == {secret["metadata"]["name"]}


def test_nodes_are_scaled_by_predicted_seconds_in_the_gpu_overlay_alone(objects: Objects):
    scaled = [each["spec"] for each in _of(objects, "ScaledObject")]
    on_gpu = any("nvidia.com/gpu" in str(container["resources"]) for _, container in _ours(objects))

    assert len(scaled) == (1 if on_gpu else 0)
    for spec in scaled:
        assert spec["scaleTargetRef"]["name"] == "aquatint-node"
        assert any("aquatint_queue_predicted_seconds" in each["metadata"]["query"] for each in spec["triggers"])


def test_no_secret_is_in_the_repository(tool: Tool):
    result = tool("git", "ls-files", "deploy/kubernetes/*/secrets")

    assert (result.returncode, result.stdout) == (0, "")
