"""The worker as a real process: pictures, cancelling, crashes, hangs, and the death of its parent."""

import asyncio
import io
import os
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from PIL import Image

from common.errors import RunCancelled
from common.images_api import ImageRequest, OutputFormat, Size, Task
from node.engines.base import EngineFailed, RunSpec
from node.models import Models
from node.resolve import resolve
from node.worker.causes import WorkerLost
from node.worker.handle import Order, Patience, Worker

ROOT = Path(__file__).parents[2]
SIZE = Size(100, 70)
BOUND_S = 300.0
"""Idle machines take a hundredth of it, and busy ones a tenth: a wait that long is a failure."""


@pytest.fixture(scope="module")
def models(tiny_models: Models) -> Models:
    return tiny_models


@pytest.fixture(scope="module")
async def worker(models: Models) -> AsyncGenerator[Worker]:
    """One for every test that leaves it alive."""
    started = Worker(device="cpu")
    await started.start()
    await asyncio.wait_for(started.load(models.by_name["sd15"].load_order("cpu", "float32")), BOUND_S)
    yield started
    await started.close()


def spec(models: Models, *, n: int = 1, steps: int = 3, size: Size = SIZE, embed: bool = False) -> RunSpec:
    request = ImageRequest(task=Task.GENERATION, prompt="a fox", n=n, size=size, seed=41, num_inference_steps=steps)
    return resolve(request, "sd15", models.by_name["sd15"].profile, embed_parameters=embed).spec


def endless(models: Models) -> RunSpec:
    """A run that takes far longer than any test waits for it."""
    return spec(models, n=10, steps=150, size=Size(512, 512))


async def begun(worker: Worker, run: RunSpec) -> asyncio.Task[object]:
    """A run that has made its first step."""
    first_step = asyncio.Event()
    task = asyncio.create_task(worker.generate(run, lambda step, steps: first_step.set()))
    await asyncio.wait_for(first_step.wait(), BOUND_S)
    return task


async def test_pictures_are_made_encoded_and_repeatable(worker: Worker, models: Models):
    steps: list[tuple[int, int]] = []
    first = await worker.generate(spec(models, n=2), lambda step, total: steps.append((step, total)))
    again = await worker.generate(spec(models, n=2))

    assert first.files == again.files
    assert [Image.open(io.BytesIO(file)).size for file in first.files] == [(100, 70)] * 2
    assert steps == [(n, 6) for n in range(1, 7)]
    assert set(first.timings_s) == {"encode", "denoise", "decode", "write"}
    assert first.prompt_tokens == 4
    assert first.files[0] == (await worker.generate(spec(models))).files[0]


@pytest.mark.parametrize("output_format", list(OutputFormat))
async def test_every_file_format_leaves_the_worker(worker: Worker, models: Models, output_format: OutputFormat):
    product = await worker.generate(replace(spec(models, embed=True), output_format=output_format, output_compression=80))

    image = Image.open(io.BytesIO(product.files[0]))
    assert image.format == output_format.value.upper()
    if output_format is OutputFormat.PNG:
        assert image.info["parameters"].splitlines()[0] == "a fox"
        assert "Seed: 41" in image.info["parameters"]


async def test_a_cancelled_run_ends_at_its_next_step_and_the_next_picture_is_fine(worker: Worker, models: Models):
    before = await worker.generate(spec(models))
    task = await begun(worker, endless(models))

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, BOUND_S)

    assert (await asyncio.wait_for(worker.generate(spec(models)), BOUND_S)).files == before.files
    assert worker.restarts == 0


@pytest.mark.parametrize("in_a_pass", [False, True])
async def test_a_run_that_waits_behind_another_is_cancelled_at_once_and_never_begins(
    worker: Worker, models: Models, in_a_pass: bool
):
    first = await begun(worker, endless(models))
    told: list[str] = []
    orders = [Order(spec(models), on_begin=lambda name=name: told.append(name)) for name in ("gone", "kept")]  # type: ignore[misc]
    numbers = [worker.prepare(order) for order in orders]
    worker.send(numbers, 2 if in_a_pass else 1)
    gone, kept = (asyncio.create_task(worker.product(number)) for number in numbers)
    await asyncio.sleep(0)

    gone.cancel()
    with pytest.raises((asyncio.CancelledError, RunCancelled)):
        await asyncio.wait_for(gone, BOUND_S)
    assert not first.done()

    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(first, BOUND_S)
    await asyncio.wait_for(kept, BOUND_S)
    assert told == ["kept"]


async def test_a_killed_worker_is_a_named_error_and_another_takes_its_place(models: Models):
    losses: list[str] = []
    worker = Worker(device="cpu", on_lost=lambda: losses.append("lost"))
    await worker.start()
    order = models.by_name["sd15"].load_order("cpu", "float32")
    await worker.load(order)
    before = await worker.generate(spec(models))
    task = await begun(worker, endless(models))
    assert worker.pid is not None
    first_pid = worker.pid

    os.kill(first_pid, signal.SIGKILL)
    with pytest.raises(WorkerLost, match="main memory ran out") as told:
        await asyncio.wait_for(task, BOUND_S)
    assert told.value.code == "insufficient_memory"
    assert losses == ["lost"]

    with pytest.raises(EngineFailed, match="not loaded"):
        await asyncio.wait_for(worker.generate(spec(models)), BOUND_S)
    await worker.load(order)
    assert (await worker.generate(spec(models))).files == before.files
    assert (worker.restarts, worker.pid != first_pid) == (1, True)
    await worker.close()


async def test_a_worker_killed_between_steps_is_a_named_error_for_each_of_the_company(models: Models):
    worker = Worker(device="cpu")
    await worker.start()
    await worker.load(models.by_name["sd15"].load_order("cpu", "float32"))
    all_at_work = asyncio.Event()
    at_work: set[str] = set()

    def company(name: str) -> Order:
        def on_step(step: int, steps: int) -> None:
            at_work.update({name} if step else ())
            if len(at_work) == 2:
                all_at_work.set()

        # One picture each: two of the first would take both places, and the late one wait for all steps of one.
        return Order(spec(models, steps=150, size=Size(512, 512)), on_step)

    tasks = []
    for name in ("first", "late"):
        number = worker.prepare(company(name))
        worker.send([number], 2, share=1)
        tasks.append(asyncio.create_task(worker.product(number)))
    await asyncio.wait_for(all_at_work.wait(), BOUND_S)
    assert worker.pid is not None

    os.kill(worker.pid, signal.SIGKILL)

    for task in tasks:
        with pytest.raises(WorkerLost, match="main memory ran out"):
            await asyncio.wait_for(task, BOUND_S)
    await worker.close()


async def test_an_order_of_another_kind_waits_for_the_company_and_is_not_passed(worker: Worker, models: Models):
    ended: list[str] = []

    async def answered(name: str, number: int) -> None:
        await worker.product(number)
        ended.append(name)

    def sent(name: str, steps: int, share: int | None) -> asyncio.Task[None]:
        number = worker.prepare(Order(spec(models, steps=steps)))
        worker.send([number], 1 if share is None else 2, share)
        return asyncio.create_task(answered(name, number))

    # The last one finds another in its way, and the company it was to join gone when its turn comes.
    tasks = [sent("long", 40, 1), sent("late", 3, 1), sent("exact", 3, None), sent("too late", 3, 1)]
    await asyncio.wait_for(asyncio.gather(*tasks), BOUND_S)

    assert ended == ["late", "long", "exact", "too late"]


async def test_a_worker_that_aborts_is_told_apart(models: Models):
    worker = Worker(device="cpu")
    await worker.start()
    await asyncio.wait_for(worker.wait_ready(), BOUND_S)
    task = asyncio.create_task(worker.load(models.by_name["sd15"].load_order("cpu", "float32")))
    assert worker.pid is not None

    os.kill(worker.pid, signal.SIGABRT)

    with pytest.raises(WorkerLost, match="aborted in native code"):
        await asyncio.wait_for(task, BOUND_S)
    await worker.close()


async def loaded(models: Models) -> Worker:
    """One with all the patience there is for its start and its first load, which take long on a machine at work."""
    worker = Worker(device="cpu")
    await worker.start()
    await worker.load(models.by_name["sd15"].load_order("cpu", "float32"))
    return worker


async def test_a_worker_that_stops_answering_is_killed_and_replaced(models: Models):
    worker = await loaded(models)
    stepped = asyncio.Event()
    task = asyncio.create_task(worker.generate(endless(models), lambda step, steps: stepped.set()))
    await asyncio.wait_for(stepped.wait(), BOUND_S)
    worker.patience = Patience(silence_s=6.0)
    stepped.clear()
    await asyncio.wait_for(stepped.wait(), BOUND_S)
    assert worker.pid is not None
    stopped = psutil.Process(worker.pid)

    stopped.suspend()
    with pytest.raises(WorkerLost, match="stopped answering") as told:
        await asyncio.wait_for(task, BOUND_S)

    assert told.value.code == "worker_hung"
    assert not stopped.is_running()
    await asyncio.wait_for(worker.wait_ready(), BOUND_S)
    await worker.close()


async def test_a_run_without_a_step_for_too_long_is_taken_for_hung(models: Models):
    worker = await loaded(models)
    worker.patience = Patience(stall_s=3.0)
    slow = replace(spec(models), drawn=Size(2048, 2048), size=Size(2048, 2048))

    with pytest.raises(WorkerLost, match="stopped answering"):
        await asyncio.wait_for(worker.generate(slow), BOUND_S)
    await worker.close()


async def test_a_worker_that_cannot_start_is_broken_and_says_why():
    worker = Worker(device="nonsense")
    await worker.start()

    with pytest.raises(Exception, match="does not start") as told:
        await asyncio.wait_for(worker.wait_ready(), BOUND_S)

    assert "exit 1" in str(told.value)
    assert worker.broken
    await worker.close()


async def test_a_load_that_fails_says_why_and_the_worker_lives(worker: Worker, models: Models, tmp_path: Path):
    order = models.by_name["sdxl"].load_order("cpu", "float32")
    gone = replace(order, checkpoint=replace(order.checkpoint, path=tmp_path / "gone", root=tmp_path))

    with pytest.raises(EngineFailed, match="gone"):
        await worker.load(gone)

    await worker.load(order)
    await worker.unload("sdxl")
    with pytest.raises(EngineFailed, match="not loaded"):
        await worker.generate(replace(spec(models), model="sdxl"))


PARENT = """
import asyncio, sys
from node.worker.handle import Worker
async def main():
    worker = Worker(device="cpu")
    await worker.start()
    await worker.wait_ready()
    print(worker.pid, flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


def test_a_worker_ends_when_its_parent_is_killed():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert parent.stdout is not None
    lines = iter(parent.stdout.readline, b"")
    child = psutil.Process(int(next(line for line in lines if line.strip().isdigit())))

    parent.kill()

    # It is no child of ours, so its end is waited for by its id; psutil polls.
    assert psutil.wait_procs([child], timeout=BOUND_S)[1] == []
    parent.wait()
    parent.stdout.close()


async def test_the_device_and_its_memory_are_known(worker: Worker):
    assert worker.device is not None
    assert worker.device.kind == "cpu"
    assert 0 < worker.device.memory_free_bytes <= worker.device.memory_total_bytes
