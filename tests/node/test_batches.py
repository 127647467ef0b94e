"""Batches as clients meet them: a real node, real sockets, and what a seed promises beside them."""

import base64
import io
import json
import os
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from PIL import Image

from node.worker.device import device_status
from tests.node.process import NodeProcess, running_node
from tests.node.test_together import LEAST_DB, psnr_db

ASK: dict[str, Any] = {"model": "sd15", "size": "64x64", "steps": 3}
BLOCKER = ASK | {"prompt": "in the way", "seed": 1, "n": 10, "size": "128x128", "steps": 150}
LONG = ASK | {"size": "64x64", "steps": 80}
PAYS = {"seconds": {"1": 1e9, "2": 0.6, "4": 0.4, "8": 0.41}, "fits": 8}
"""Whatever is measured from now on changes this verdict little."""
SHAPES = ("sd15 64x64 3 steps guided", "sd15 64x64 80 steps guided")
ROOM = {"AQUATINT__NODE__MAX_QUEUED": "8"}


def with_table(home: Path, measured: Mapping[str, Any] = dict.fromkeys(SHAPES, PAYS)) -> Path:
    """A home whose node has measured before: that batches of 4 pay, unless something else is said of the shapes."""
    device = device_status("cpu").name
    (home / "node-batches.json").write_text(json.dumps({f"{device}: {shape}": row for shape, row in measured.items()}))
    return home


@pytest.fixture(scope="module")
def node(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with running_node(tiny, with_table(tmp_path_factory.mktemp("home")), **ROOM) as started:
        assert made(asked(started, ASK | {"prompt": "a first one"}))
        yield started


def asked(node: NodeProcess, body: dict[str, Any]) -> httpx.Response:
    with node.http() as client:
        return client.post("/v1/images/generations", json=body)


def made(answer: httpx.Response) -> list[bytes]:
    assert answer.status_code == 200, answer.text
    return [base64.b64decode(each["b64_json"]) for each in answer.json()["data"]]


def seed(answer: httpx.Response) -> int:
    return int(answer.json()["data"][0]["seed"])


def batch(answer: httpx.Response) -> int:
    return int(answer.json()["parameters"]["batch"])


def distance_db(left: bytes, right: bytes) -> float:
    return psnr_db(*(Image.open(io.BytesIO(each)).convert("RGB") for each in (left, right)))


def waiting_together(node: NodeProcess, pool: ThreadPoolExecutor, bodies: list[dict[str, Any]]) -> list[Future[httpx.Response]]:
    """Requests that all wait when the device comes free."""
    blocker = pool.submit(asked, node, BLOCKER)
    run_id = node.running()
    sent = [pool.submit(asked, node, body) for body in bodies]
    while len(node.status().jobs) <= len(bodies):
        pass
    with node.http() as client:
        assert client.post("/node/v1/cancel", json={"run_id": run_id}).json()["cancelled"]
    assert blocker.result(60).status_code == 499
    return sent


def test_requests_without_a_seed_that_wait_share_one_pass(node: NodeProcess):
    bodies = [ASK | {"prompt": prompt} for prompt in ("a fox", "a small blue square", "x", "two cats")]
    with ThreadPoolExecutor(8) as pool:
        answers = [each.result(60) for each in waiting_together(node, pool, bodies)]

    assert [batch(answer) for answer in answers] == [4] * 4
    alone = [asked(node, body | {"seed": seed(answer)}) for body, answer in zip(bodies, answers, strict=True)]
    assert [batch(answer) for answer in alone] == [1] * 4
    assert min(distance_db(made(one)[0], made(other)[0]) for one, other in zip(answers, alone, strict=True)) >= LEAST_DB
    recipe = json.loads(Image.open(io.BytesIO(made(answers[0])[0])).info["aquatint"])
    assert (recipe["batch"], recipe["seed"]) == (4, seed(answers[0]))


def test_who_names_a_seed_gets_its_bytes_whoever_else_waits(node: NodeProcess):
    seeded = ASK | {"prompt": "a fox", "seed": 7}
    with ThreadPoolExecutor(8) as pool:
        sent = waiting_together(node, pool, [ASK | {"prompt": "a cat"}, seeded, ASK | {"prompt": "a dog"}])
        answers = [each.result(60) for each in sent]

    assert [batch(answer) for answer in answers] == [2, 1, 2]
    assert made(answers[1]) == made(asked(node, seeded))


def test_exact_says_otherwise_in_both_directions(node: NodeProcess):
    bodies = [
        ASK | {"prompt": "a fox"} | more for more in ({"seed": 7, "exact": False}, {"exact": True}, {"seed": 8, "exact": False})
    ]
    with ThreadPoolExecutor(8) as pool:
        answers = [each.result(60) for each in waiting_together(node, pool, bodies)]

    assert [batch(answer) for answer in answers] == [2, 1, 2]
    assert seed(answers[0]) == 7


def test_the_pictures_of_one_request_share_passes(node: NodeProcess):
    together, alone = (asked(node, ASK | {"prompt": "a fox", "n": 4, "seed": 9, "exact": exact}) for exact in (False, True))

    assert (batch(together), batch(alone)) == (4, 1)
    assert min(distance_db(*pair) for pair in zip(made(together), made(alone), strict=True)) >= LEAST_DB


def test_a_seed_is_the_same_bytes_again_on_another_node_and_after_its_restart(node: NodeProcess, tiny: Path, tmp_path: Path):
    body = ASK | {"prompt": "a fox", "seed": 41, "n": 2}
    pictures = made(asked(node, body))

    assert made(asked(node, body)) == pictures
    for _ in range(2):
        with running_node(tiny, tmp_path) as another:
            assert made(asked(another, body)) == pictures


def test_one_that_is_cancelled_leaves_the_pass_and_the_others_get_their_pictures(node: NodeProcess):
    with ThreadPoolExecutor(8) as pool:
        first, second = waiting_together(node, pool, [LONG | {"prompt": "a fox"}, LONG | {"prompt": "a cat"}])
        run_id = node.running()
        with node.http() as client:
            assert client.post("/node/v1/cancel", json={"run_id": run_id}).json()["cancelled"]
        answers = [first.result(60), second.result(60)]

    cancelled, finished = sorted(answers, key=lambda answer: answer.status_code, reverse=True)
    assert cancelled.status_code == 499
    assert batch(finished) == 2


def test_a_worker_that_dies_under_a_pass_does_not_take_the_runs_with_it(node: NodeProcess):
    with ThreadPoolExecutor(8) as pool:
        sent = waiting_together(node, pool, [LONG | {"prompt": "a fox"}, LONG | {"prompt": "a cat"}])
        node.running()
        (worker,) = [each for each in psutil.Process(node.process.pid).children() if "node.worker" in each.cmdline()]
        os.kill(worker.pid, signal.SIGKILL)
        answers = [each.result(120) for each in sent]

    assert [(answer.status_code, batch(answer)) for answer in answers] == [(200, 1)] * 2


def test_what_ran_is_measured_and_kept(tiny: Path, tmp_path: Path):
    with running_node(tiny, tmp_path, **ROOM) as fresh:
        for _ in range(2):
            asked(fresh, ASK | {"prompt": "a fox"})
        two = [asked(fresh, ASK | {"prompt": "a fox", "n": 2}) for _ in range(2)]
        told = fresh.status().batch_s
        wanted = {model.id: model.batch for model in fresh.status().models}

    assert [batch(answer) for answer in two] == [2, 2]
    ((shape, seconds),) = told.items()
    assert shape.endswith(f": {SHAPES[0]}")
    assert set(seconds) == {1, 2}
    kept = json.loads((tmp_path / "node-batches.json").read_text())
    assert {int(size) for size in kept[shape]["seconds"]} == {1, 2}
    assert wanted["z-image"] == 2


def test_batching_can_be_switched_off(tiny: Path, tmp_path: Path):
    with running_node(tiny, with_table(tmp_path), AQUATINT__NODE__BATCHING="off") as plain:
        answer = asked(plain, ASK | {"prompt": "a fox", "n": 4})

        assert batch(answer) == 1
        assert {model.batch for model in plain.status().models} == {1}
