"""The worker with sd.cpp as a real process: it needs no torch, and a cancelled run costs its process and nothing else."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from common.images_api import ImageRequest, Size, Task
from node.engine_names import EngineName
from node.engines.base import EngineFailed, RunCancelled, RunSpec
from node.models import Models
from node.resolve import resolve
from node.worker.handle import Worker
from tests.node.conftest import ROOT

SMALL = Size(64, 64)
BOUND_S = 60.0
NEXT_PICTURE_S = 3.0
"""Processor time from the cancel of a run to the next picture: a new process, a load, and the picture itself."""


def spec(models: Models, *, model: str = "ovis", n: int = 1, steps: int = 2, size: Size = SMALL) -> RunSpec:
    request = ImageRequest(task=Task.GENERATION, prompt="a fox", n=n, size=size, seed=41, num_inference_steps=steps)
    profile = models.by_name[model].profile
    return replace(resolve(request, model, profile, embed_parameters=False).spec, guidance=1.0)


def endless(models: Models) -> RunSpec:
    """A run that takes far longer than any test waits for it."""
    return spec(models, n=10, steps=100, size=Size(512, 512))


async def begun(worker: Worker, run: RunSpec) -> asyncio.Task[object]:
    """A run that has made its first step."""
    first_step = asyncio.Event()
    task = asyncio.create_task(worker.generate(run, lambda step, steps: first_step.set()))
    await asyncio.wait_for(first_step.wait(), BOUND_S)
    return task


@pytest.fixture
async def worker(sdcpp_models: Models) -> AsyncGenerator[Worker]:
    """One with `ovis` loaded."""
    started = Worker(device="cpu", engine=EngineName.SDCPP)
    await started.start()
    await asyncio.wait_for(started.load(sdcpp_models.by_name["ovis"].load_order("cpu", "auto")), BOUND_S)
    yield started
    await started.close()


def processor_s(pid: int | None) -> float:
    """What a process has cost so far. On a machine shared with others the clock tells more of them."""
    spent = psutil.Process(pid).cpu_times()
    return spent.user + spent.system


async def test_a_cancelled_run_frees_the_worker_and_the_next_picture_comes_soon(worker: Worker, sdcpp_models: Models):
    before = await worker.generate(spec(sdcpp_models))
    first_pid = worker.pid
    task = await begun(worker, endless(sdcpp_models))
    began = time.monotonic()

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, BOUND_S)
    freed_s = time.monotonic() - began
    await worker.load(sdcpp_models.by_name["ovis"].load_order("cpu", "auto"))
    after = await worker.generate(spec(sdcpp_models))

    assert freed_s < 1.0
    assert worker.pid != first_pid
    assert processor_s(worker.pid) < NEXT_PICTURE_S
    assert after.files == before.files
    assert (worker.restarts, worker.last_loss, worker.broken) == (0, None, False)


async def test_who_comes_right_after_a_cancel_never_meets_the_process_that_ends(sdcpp_models: Models):
    told: list[str] = []
    worker = Worker(device="cpu", engine=EngineName.SDCPP, on_lost=lambda: told.append("lost"))
    await worker.start()
    order = sdcpp_models.by_name["ovis"].load_order("cpu", "auto")
    for _ in range(5):
        await asyncio.wait_for(worker.load(order), BOUND_S)
        task = await begun(worker, endless(sdcpp_models))
        told.clear()

        task.cancel()
        await asyncio.wait({task})

        # Whoever keeps a list of what is loaded knows by now that nothing is.
        assert told == ["lost"]
        assert not worker.ready
    await worker.close()
    assert worker.restarts == 0


async def test_what_waits_behind_a_cancelled_run_is_done_by_the_next_process(worker: Worker, sdcpp_models: Models):
    task = await begun(worker, endless(sdcpp_models))
    load = asyncio.create_task(worker.load(sdcpp_models.by_name["ovis-q8"].load_order("cpu", "auto")))
    never = asyncio.create_task(worker.generate(spec(sdcpp_models)))
    await asyncio.sleep(0)

    task.cancel()
    never.cancel()
    await asyncio.wait_for(load, BOUND_S)

    assert (await worker.generate(spec(sdcpp_models, model="ovis-q8"))).files
    with pytest.raises((asyncio.CancelledError, RunCancelled)):
        await asyncio.wait_for(never, BOUND_S)


async def test_a_load_that_fails_says_why_and_the_worker_lives(worker: Worker, sdcpp_models: Models, tmp_path: Path):
    order = sdcpp_models.by_name["ovis"].load_order("cpu", "auto")
    pid = worker.pid
    gone = replace(order, checkpoint=replace(order.checkpoint, path=tmp_path / "gone.gguf", root=tmp_path))

    with pytest.raises(EngineFailed, match=r"gone\.gguf"):
        await worker.load(gone)

    assert (await worker.generate(spec(sdcpp_models))).files
    assert worker.pid == pid


async def test_both_engines_live_in_one_worker(worker: Worker, sdcpp_models: Models, tiny_models: Models):
    before = await worker.generate(spec(sdcpp_models))
    await asyncio.wait_for(worker.load(tiny_models.by_name["sd15"].load_order("cpu", "float32")), BOUND_S)
    by_diffusers = spec(tiny_models, model="sd15")

    first = await worker.generate(by_diffusers)

    assert (await worker.generate(spec(sdcpp_models))).files == before.files
    assert (await worker.generate(by_diffusers)).files == first.files


WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "numpy"}:
            raise ImportError(f"{name} is not to be imported here")
sys.meta_path.insert(0, Refuse())
from pathlib import Path
from node.engine_names import EngineName
from node.models import find_models
from node.resolve import resolve
from node.worker import __main__
from node.worker.device import choose_device, device_status
from node.worker.engines import Engines
from common.images_api import ImageRequest, Size, Task
device = choose_device("auto", EngineName.SDCPP)
engines = Engines(device, 1)
models = find_models([Path(sys.argv[1])], engines={EngineName.SDCPP})
model = models.by_name["ovis"]
engines.load(model.load_order(device, "auto"))
request = ImageRequest(task=Task.GENERATION, prompt="a fox", seed=1, size=Size(64, 64), num_inference_steps=1)
spec = resolve(request, "ovis", model.profile, embed_parameters=False).spec
image = engines.generate(spec, None, lambda step, steps: None, lambda index, image: None).images[0]
print(image.size, device_status(device).kind, file=sys.stderr)
"""


def test_nothing_of_torch_or_numpy_is_imported_on_the_way_to_a_picture(sdcpp_files: Path):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, str(sdcpp_files)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1].startswith("(64, 64) c")
