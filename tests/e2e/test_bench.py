"""The benchmarks run, and what they print can be read by a program. Their figures are for people to judge."""

import json

import httpx
import pytest

from tests.e2e.conftest import KEY, Machine, Started


def test_a_node_is_measured_beside_the_bare_pipeline(machine: Machine):
    told = machine.run("bench", "node", "--steps", "2", "--size", "64x64", "--count", "2", "--clients", "10", "--json")

    assert told.returncode == 0, told.stderr
    figures = json.loads(told.stdout)
    assert figures["overhead_ratio"] == pytest.approx(figures["node_s"] / figures["bare_s"], rel=0.01)
    assert figures["images_per_s_of_10_clients"] > 0
    assert figures["images_per_s_of_10_clients_batched"] > 0
    assert figures["late_latency_ratio"] > 0
    assert figures["late_throughput_ratio"] > 0
    assert all(set(seconds) <= {"1", "2", "4", "8"} for seconds in figures["batch_table_s_per_image"].values())
    assert set(figures["batch_curve_s_per_image"]) == {"1", "2", "4", "8"}
    assert figures["worker_peak_bytes"] > 100_000_000


def test_the_way_of_a_preview_is_measured_through_the_router_and_without_it(machine: Machine):
    node = machine.node("a")
    router = machine.router()
    reach = ("--url", router.url, "--key", KEY)
    added = machine.run("nodes", "add", "a", node.url, "--token", "node-token-0123456789", *reach)
    assert added.returncode == 0, added.stderr

    told = machine.run(
        "bench", "stream", "--node", node.url, "--token", "node-token-0123456789", "--count", "3", "--json", *reach
    )

    assert told.returncode == 0, told.stderr
    through, straight, difference = json.loads(told.stdout)
    assert (through["way"], through["streams"], straight["way"], straight["streams"]) == ("router", 3, "node", 3)
    assert 0 < straight["median_ms"] < 60_000
    assert difference["median_ms"] == round(through["median_ms"] - straight["median_ms"], 2)


def test_a_stream_that_cannot_be_measured_is_told(house: tuple[Machine, Started]):
    machine, up = house
    (node,) = httpx.get(f"{up.url}/admin/nodes", headers={"authorization": f"Bearer {KEY}"}, timeout=30).json()["data"]

    told = machine.run(
        "bench", "stream", "--node", node["url"], "--token", "wrong-token-0123456", "--url", node["url"], "--key", "wrong"
    )

    assert told.returncode == 1
    assert "answered 401" in told.stderr
