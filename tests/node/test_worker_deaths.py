"""A whole node whose worker crashes or hangs: it answers all the while, each run ends with a named cause, and a model that
ends its worker three times is not tried any more. Names of models that are paths are names of nothing."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.node.process import NodeProcess, running_node

ASK = {"prompt": "a fox", "model": "sd15", "size": "64x64", "seed": 41, "num_inference_steps": 2}
ENDLESS = ASK | {"size": "512x512", "n": 10, "num_inference_steps": 150}
BOUND_S = 300.0
ANSWERS_WITHIN_S = 1.0


@pytest.fixture(scope="module")
def node(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with running_node(tiny, tmp_path_factory.mktemp("home")) as running:
        yield running


class Asking:
    """A request on a thread of its own."""

    def __init__(self, node: NodeProcess, body: dict[str, Any]) -> None:
        self._node = node
        self._body = body
        self._answers: list[httpx.Response] = []
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        with self._node.http() as client:
            client.timeout = httpx.Timeout(BOUND_S)
            self._answers.append(client.post("/v1/images/generations", json=self._body))

    def answer(self) -> httpx.Response:
        self._thread.join(BOUND_S)
        (answer,) = self._answers
        return answer


def ask(node: NodeProcess, **changes: Any) -> httpx.Response:
    return Asking(node, ASK | changes).answer()


def worker_of(node: NodeProcess) -> psutil.Process:
    """The node's one child that is a worker."""
    end_s = time.monotonic() + BOUND_S
    while time.monotonic() < end_s:
        for child in psutil.Process(node.process.pid).children():
            if "node.worker" in child.cmdline():
                return child
    pytest.fail("there is no worker")


def answers_at_once(node: NodeProcess) -> None:
    """Of a few tries, for a machine at work may hold up any process for a moment."""
    with node.http(None) as client:
        for _ in range(5):
            began_s = time.monotonic()
            assert client.get("/health").status_code == 200
            if time.monotonic() - began_s < ANSWERS_WITHIN_S:
                return
    pytest.fail("no answer within a second, five times")


def test_a_worker_that_hangs_or_is_killed_costs_the_run_and_the_node_answers_all_the_while(node: NodeProcess):
    before = ask(node).json()["data"][0]["b64_json"]
    asked = Asking(node, ENDLESS)
    node.running()
    hung = worker_of(node)

    hung.suspend()
    answers_at_once(node)
    assert node.status().jobs[0].phase == "running"
    hung.kill()
    error = asked.answer()

    assert (error.status_code, error.json()["error"]["code"]) == (502, "insufficient_memory")
    assert "killed from outside" in error.json()["error"]["message"]
    answers_at_once(node)
    assert ask(node).json()["data"][0]["b64_json"] == before
    assert worker_of(node).pid != hung.pid
    with node.http(None) as client:
        assert "aquatint_node_worker_restarts_total 1.0" in client.get("/metrics").text


def test_a_model_that_ends_its_worker_three_times_is_not_tried_again_and_the_others_go_on(node: NodeProcess):
    for _ in range(3):
        asked = Asking(node, ENDLESS)
        node.running()
        os.kill(worker_of(node).pid, signal.SIGSEGV)
        error = asked.answer().json()["error"]
        answers_at_once(node)
        assert error["code"] == "worker_lost"
        assert "crashed in native code" in error["message"]
    pid = worker_of(node).pid

    refused = ask(node)

    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "model_quarantined")
    assert "3 times in a row" in refused.json()["error"]["message"]
    assert ask(node, model="sdxl").status_code == 200
    assert worker_of(node).pid == pid
    (told,) = (each.unavailable for each in node.status().models if each.id == "sd15")
    assert "is not tried any more" in (told or "")
    with node.http() as client:
        client.timeout = httpx.Timeout(BOUND_S)
        assert client.post("/node/v1/load", json={"model": "sd15"}).status_code == 200
    assert ask(node).status_code == 200


@pytest.mark.parametrize(
    "name", ["../sd15", "./sd15", "sd15/", "/etc/passwd", "../../../../etc/passwd", "..\\sd15", "sd15\0", "%2e%2e/sd15", "~"]
)
def test_a_name_that_is_a_path_is_the_name_of_no_model(node: NodeProcess, tiny: Path, name: str):
    for each in (name, f"{tiny}/{name}"):
        answer = ask(node, model=each)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")
        with node.http() as client:
            for order in ("load", "unload"):
                assert client.post(f"/node/v1/{order}", json={"model": each}).status_code == 404
