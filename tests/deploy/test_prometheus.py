"""A real Prometheus scrapes a real router and node: every panel has data, and no alert is raised while all is well."""

import json
import math
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from common.ports import hold_port
from tests.deploy.conftest import ROOT, Tool, read_yaml, slow
from tests.e2e.conftest import KEY, Machine, Started, answers, new_machine, wait_for

DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboards/aquatint.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
ALERTS = [rule for group in read_yaml("deploy/prometheus/alerts.yml")["groups"] for rule in group["rules"]]
TOKEN = "node-token-0123456789"


def test_the_configuration_and_its_rules_are_valid(tool: Tool):
    result = tool("promtool", "check", "config", "--lint-fatal", "deploy/prometheus/prometheus.yml")

    assert result.returncode == 0, result.stdout + result.stderr


def test_every_alert_fires_in_its_test_and_is_quiet_in_the_healthy_one(tool: Tool):
    tests = (ROOT / "deploy/prometheus/alerts_test.yml").read_text()

    result = tool("promtool", "test", "rules", "deploy/prometheus/alerts_test.yml")

    assert result.returncode == 0, result.stdout + result.stderr
    assert {rule["alert"] for rule in ALERTS} == set(re.findall(r'alertname="(\w+)"', tests))


@dataclass
class Watched:
    """A fleet, and the Prometheus that scrapes it."""

    machine: Machine
    router: Started
    url: str

    def ask(self, path: str, **parameters: Any) -> Any:
        """Prometheus' answer."""
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=10, trust_env=False).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def has_data(self, expression: str) -> bool:
        """Whether a query gives at least one number."""
        result = self.ask("query", query=expression.replace("$__rate_interval", "1m"))["result"]
        return any(not math.isnan(float(each["value"][1])) for each in result)

    def generate(self) -> None:
        """One small picture."""
        body = {"prompt": "a red cube", "size": "64x64", "num_inference_steps": 2}
        headers = {"authorization": f"Bearer {KEY}"}
        reply = httpx.post(f"{self.router.url}/v1/images/generations", json=body, headers=headers, timeout=120, trust_env=False)
        assert reply.status_code == 200, reply.text


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """A router and a node as an operator starts them, watched with this project's own configuration, only more often."""
    slow()
    home = tmp_path_factory.mktemp("watched")
    machines = new_machine(home, {})
    machine = next(machines)
    assert machine.run("db", "upgrade").returncode == 0
    node, router = machine.node("a", TOKEN), machine.router()
    token = home / "token"
    token.write_text(TOKEN + "\n")
    add = ("nodes", "add", "a", node.url, "--token-file", str(token), "--update", "--url", router.url)
    for _ in range(2):
        added = machine.run(*add, AQUATINT_API_KEY=KEY)
        assert (added.returncode, "online" in added.stdout) == (0, True), added.stdout + added.stderr
    url = f"http://127.0.0.1:{hold_port()}"
    process = _prometheus(home, {"aquatint-router": router.url, "aquatint-node": node.url}, url)
    try:
        wait_for(lambda: answers(f"{url}/-/ready"), what="Prometheus")
        yield Watched(machine, router, url)
    finally:
        process.terminate()
        process.wait(30)
        list(machines)


def _prometheus(home: Path, targets: dict[str, str], url: str) -> subprocess.Popen[bytes]:
    config = read_yaml("deploy/prometheus/prometheus.yml")
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(ROOT / "deploy/prometheus/alerts.yml")]
    for job in config["scrape_configs"]:
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": [targets[job["job_name"]].removeprefix("http://")]}]
    (home / "prometheus.yml").write_text(yaml.safe_dump(config))
    options = {"config.file": home / "prometheus.yml", "storage.tsdb.path": home / "tsdb", "log.level": "warn"}
    options |= {"web.listen-address": url.removeprefix("http://"), "enable-feature": "exemplar-storage"}
    return subprocess.Popen(["prometheus", *(f"--{name}={value}" for name, value in options.items())])


def test_every_query_of_the_dashboard_returns_data(watched: Watched):
    asked = {f"{panel['title']}: {target['expr']}": target["expr"] for panel in PANELS for target in panel["targets"]}
    assert len(asked) > 20
    empty = dict(asked)
    end_s = time.monotonic() + 90
    while empty and time.monotonic() < end_s:
        # Rates need a change between two scrapes, so there is traffic until the last panel has seen it.
        watched.generate()
        empty = {title: expression for title, expression in empty.items() if not watched.has_data(expression)}

    assert not list(empty)


def test_top_shows_the_fleet(watched: Watched):
    watched.generate()
    asked = ("--url", watched.router.url, "--key", KEY)

    told = json.loads(watched.machine.run("top", "--json", *asked).stdout)
    shown = watched.machine.run("top", "--once", *asked)

    assert [(node["name"], node["state"]) for node in told["nodes"]] == [("a", "online")]
    assert told["ended"]["succeeded"] >= 1
    assert (shown.returncode, shown.stdout.startswith("1 of 1 nodes online")) == (0, True), shown.stdout + shown.stderr
    assert watched.machine.run("top", "--once", "--url", "http://127.0.0.1:9").returncode == 1


def test_a_slow_bucket_leads_to_a_run(watched: Watched):
    watched.generate()
    now_s = time.time()
    found: list[str] = []

    def seen() -> bool:
        series = watched.ask("query_exemplars", query="aquatint_run_seconds_bucket", start=now_s - 600, end=now_s + 600)
        found.extend(each["labels"]["run_id"] for one in series for each in one["exemplars"])
        return bool(found)

    wait_for(seen, what="an exemplar", within_s=30)
    headers = {"authorization": f"Bearer {KEY}"}
    run = httpx.get(f"{watched.router.url}/v1/runs/{found[0]}", headers=headers, timeout=10, trust_env=False).json()
    assert run["status"] == "succeeded"


def test_no_alert_is_pending_in_a_healthy_fleet(watched: Watched):
    rules = [rule for group in watched.ask("rules")["groups"] for rule in group["rules"]]

    assert {rule["name"] for rule in rules} == {rule["alert"] for rule in ALERTS}
    assert {rule["health"] for rule in rules} == {"ok"}
    assert [alert["labels"]["alertname"] for alert in watched.ask("alerts")["alerts"]] == []


def test_what_a_client_names_makes_no_series(watched: Watched):
    headers = {"authorization": f"Bearer {KEY}"}
    counted = []
    for number in range(3):
        watched.generate()
        httpx.get(f"{watched.router.url}/v1/made-up/{number}", headers=headers, trust_env=False)
        body = {"prompt": "x", "model": f"made-up-{number}"}
        httpx.post(f"{watched.router.url}/v1/images/generations", json=body, headers=headers, trust_env=False)
        exposition = httpx.get(f"{watched.router.url}/metrics", trust_env=False).text
        counted.append(sum(not line.startswith("#") for line in exposition.splitlines()))

    assert len(set(counted)) == 1


def test_what_the_autoscaler_asks_is_answered_with_one_number(watched: Watched):
    triggers = read_yaml("deploy/kubernetes/base/autoscaling.yaml")["spec"]["triggers"]

    for trigger in triggers:
        (result,) = watched.ask("query", query=trigger["metadata"]["query"])["result"]
        assert float(result["value"][1]) >= 0
