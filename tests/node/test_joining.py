"""Runs that come between the steps of others, as clients meet them: a real node, real sockets, a worker that may die."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.node.process import NodeProcess, running_node
from tests.node.test_batches import ASK, LONG, PAYS, ROOM, SHAPES, asked, batch, distance_db, made, seed, with_table
from tests.node.test_together import LEAST_DB

LONGER = LONG | {"prompt": "a fox", "n": 1, "steps": 150}
SHAPE_LONGER = "sd15 64x64 150 steps guided"
DOES_NOT_PAY = {"seconds": {"1": 0.6, "2": 0.6, "4": 0.6, "8": 0.6}, "fits": 8}


@pytest.fixture(scope="module")
def node(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    home = with_table(tmp_path_factory.mktemp("home"), dict.fromkeys((*SHAPES, SHAPE_LONGER), PAYS))
    with running_node(tiny, home, **ROOM) as started:
        assert made(asked(started, ASK | {"prompt": "a first one"}))
        yield started


class Timed:
    """Requests on threads, and the order in which they were answered."""

    def __init__(self, node: NodeProcess, pool: ThreadPoolExecutor) -> None:
        self._node = node
        self._pool = pool
        self.ended: list[str] = []

    def ask(self, body: dict[str, Any]) -> Future[httpx.Response]:
        def send() -> httpx.Response:
            answer = asked(self._node, body)
            self.ended.append(body["prompt"])
            return answer

        return self._pool.submit(send)

    def beside_one_at_work(self, *bodies: dict[str, Any]) -> list[httpx.Response]:
        """Has LONGER at work, then asks for more, each once the node holds the one before it; gives every answer."""
        sent = [self.ask(LONGER)]
        self._node.running()
        for body in bodies:
            sent.append(self.ask(body))
            while len(self._node.status().jobs) < len(sent) and not sent[-1].done():
                pass
        return [each.result(120) for each in sent]

    def at_work(self, count: int) -> list[str]:
        """The ids of the runs at work, once so many have made a step."""
        while True:
            jobs = self._node.status().jobs
            if len(jobs) == count and all(job.step for job in jobs):
                return [job.run_id for job in jobs]


@pytest.fixture
def timed(node: NodeProcess) -> Iterator[Timed]:
    with ThreadPoolExecutor(8) as pool:
        yield Timed(node, pool)


def test_who_comes_late_joins_the_one_at_work_and_is_done_before_it(node: NodeProcess, timed: Timed):
    late = ASK | {"prompt": "a late cat"}

    answers = timed.beside_one_at_work(late)

    assert [batch(answer) for answer in answers] == [2, 2]
    assert timed.ended == ["a late cat", "a fox"]
    for body, answer in zip((LONGER, late), answers, strict=True):
        alone = asked(node, body | {"seed": seed(answer)})
        assert batch(alone) == 1
        assert distance_db(made(answer)[0], made(alone)[0]) >= LEAST_DB


def test_who_names_a_seed_joins_nobody_and_is_passed_by_nobody(node: NodeProcess, timed: Timed):
    seeded = ASK | {"prompt": "a seeded cat", "seed": 7}

    answers = timed.beside_one_at_work(seeded, ASK | {"prompt": "a dog"})

    assert [batch(answer) for answer in answers] == [1, 1, 1]
    assert timed.ended == ["a fox", "a seeded cat", "a dog"]
    assert made(answers[1]) == made(asked(node, seeded))


def test_a_run_that_may_be_joined_and_is_not_has_the_bytes_of_its_seed(node: NodeProcess):
    seeded = ASK | {"prompt": "a fox", "seed": 7, "n": 1}

    joinable, exact = asked(node, seeded | {"exact": False}), asked(node, seeded)

    assert made(joinable) == made(exact)


def test_where_a_batch_is_measured_not_to_pay_who_comes_late_waits(tiny: Path, tmp_path: Path):
    home = with_table(tmp_path, dict.fromkeys((*SHAPES, SHAPE_LONGER), DOES_NOT_PAY))
    with running_node(tiny, home, **ROOM) as other, ThreadPoolExecutor(8) as pool:
        asked(other, ASK | {"prompt": "a first one"})
        timed = Timed(other, pool)

        answers = timed.beside_one_at_work(ASK | {"prompt": "a late cat"})

    assert [batch(answer) for answer in answers] == [1, 1]
    assert timed.ended == ["a fox", "a late cat"]


@pytest.mark.parametrize("who", [0, 1])
def test_one_that_is_cancelled_leaves_and_the_other_goes_on(node: NodeProcess, timed: Timed, who: int):
    sent = [timed.ask(LONGER)]
    node.running()
    sent.append(timed.ask(LONGER | {"prompt": "a cat"}))
    run_ids = timed.at_work(2)

    with node.http() as client:
        began = time.monotonic()
        assert client.post("/node/v1/cancel", json={"run_id": run_ids[who]}).json()["cancelled"]
        assert sent[who].result(60).status_code == 499
        cancel_s = time.monotonic() - began

    other = sent[1 - who].result(60)
    assert batch(other) == 2
    # One step of many, and the other's picture was still far off.
    assert cancel_s < other.json()["timings"]["denoise"]


def test_a_worker_that_dies_between_steps_takes_nobody_with_it(node: NodeProcess, timed: Timed):
    sent = [timed.ask(LONGER)]
    node.running()
    sent.append(timed.ask(LONG | {"prompt": "a cat"}))
    timed.at_work(2)

    (worker,) = [each for each in psutil.Process(node.process.pid).children() if "node.worker" in each.cmdline()]
    os.kill(worker.pid, signal.SIGKILL)

    assert [(each.result(120).status_code, batch(each.result())) for each in sent] == [(200, 1)] * 2


def test_z_images_of_different_sizes_share_steps(tiny: Path, tmp_path: Path):
    sizes = ("768x768", "64x64")
    shapes = [f"z-image {size} {steps} steps unguided" for size in sizes for steps in (16, 4)]
    with running_node(tiny, with_table(tmp_path, dict.fromkeys(shapes, PAYS)), **ROOM) as other, ThreadPoolExecutor(2) as pool:
        bodies = [{"model": "z-image", "size": size, "prompt": size} for size in sizes]
        asked(other, bodies[1] | {"steps": 4})
        first = pool.submit(asked, other, bodies[0] | {"steps": 16, "n": 1})
        other.running()
        answers = [asked(other, bodies[1] | {"steps": 4}), first.result(60)]

    assert [batch(answer) for answer in answers] == [2, 2]
