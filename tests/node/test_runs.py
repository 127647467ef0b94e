"""The node's main path with a real worker and a real catalog: what the rows say of every way a run can end."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Callable, Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest

from common.catalog import AttemptFenced, AttemptStatus, Catalog, NewRun, RunStatus, open_asset_store
from common.errors import AquatintError, InvalidRequest, OutOfDeviceMemory, RunCancelled, TooManyRequests, UnknownModel
from common.images_api import AssetLinks, ImageRequest, Preset, Size, Task, answer_bytes
from common.node_api import DeviceStatus
from node.decoding import Decoder
from node.memory_ladder import MemoryLadder
from node.memory_limits import MemoryLimits
from node.metrics import NodeMetrics
from node.models import Models
from node.pipeline_classes import Family
from node.recorder import Recorder, Sender
from node.residency import Residency
from node.resolve import resolve
from node.runs import Answer, Runs
from node.scheduler import Pace, Scheduler
from node.sharing import steps_key
from node.worker.causes import WorkerLost
from node.worker.handle import Worker

BOUND_S = 90.0
ASK = ImageRequest(task=Task.GENERATION, prompt="a fox", model="sd15", seed=41, size=Size(64, 64), num_inference_steps=2)
ENDLESS = ASK._replace(n=10, size=Size(512, 512), num_inference_steps=150)


@dataclass
class Bench:
    """A node without HTTP."""

    runs: Runs
    scheduler: Scheduler
    catalog: Catalog
    worker: Worker
    tasks: set[asyncio.Task[Any]]

    def make(self, request: ImageRequest, **sender: Any) -> asyncio.Task[Answer]:
        asked = Sender(**{"request_id": "req_1", "base_url": "http://node"} | sender)
        task = asyncio.create_task(self.runs.make(request, asked))
        self.tasks.add(task)
        return task

    async def step_made(self) -> str:
        """The id of the run at work, once it has made a step."""
        async with asyncio.timeout(BOUND_S):
            while not (self.scheduler.jobs and self.scheduler.jobs[0].step):
                await asyncio.sleep(0.01)
        return self.scheduler.jobs[0].run_id

    async def router_opened(self, run_id: str) -> int:
        """A run as a router opens it; gives the attempt's number."""
        await self.catalog.runs.open(
            NewRun(id=run_id, task="generation", model="sd15", prompt="a fox", request={}, request_id="r", source="router")
        )
        return await self.catalog.runs.begin_attempt(run_id, node="test")


@pytest.fixture(scope="module")
async def worker() -> AsyncGenerator[Worker]:
    started = Worker(device="cpu")
    await started.start()
    await asyncio.wait_for(started.wait_ready(), BOUND_S)
    yield started
    await started.close()


@pytest.fixture
async def bench(worker: Worker, tiny_models: Models, catalog: Catalog, tmp_path: Path) -> AsyncGenerator[Bench]:
    pace = Pace()
    residency = Residency(worker)
    worker._on_lost = residency.forget_all
    scheduler = Scheduler(max_queued=1, pace=pace, is_resident=residency.is_resident)
    runs = Runs(
        models=tiny_models,
        worker=worker,
        ladder=MemoryLadder(residency, MemoryLimits(), dtype="auto"),
        scheduler=scheduler,
        pace=pace,
        recorder=Recorder(catalog, open_asset_store(str(tmp_path / "assets")), node="test"),
        links=AssetLinks("secret"),
        metrics=NodeMetrics(),
        node="test",
        decoder=Decoder(max_pixels=1_000_000),
        embed_parameters=False,
    )
    made = Bench(runs, scheduler, catalog, worker, set())
    yield made
    for task in made.tasks:
        task.cancel()
    await asyncio.gather(*made.tasks, return_exceptions=True)


async def test_a_run_that_succeeds_is_recorded_whole(bench: Bench):
    answer = await bench.make(ASK._replace(n=2, user="me", ignored=("odd",)))

    body = orjson.loads(answer_bytes(answer.head, answer.pictures))
    run = await bench.catalog.runs.get(answer.run_id)
    assert (run.status, run.source, run.node, run.seed, run.n) == (RunStatus.SUCCEEDED, "node", "test", 41, 2)
    assert [(image.index, image.seed, image.width_px) for image in run.images] == [(0, 41, 64), (1, 42, 64)]
    assert [each["asset_id"] for each in body["data"]] == [image.id for image in run.images]
    assert run.answer is not None
    assert body == run.answer | {"data": body["data"]}
    assert run.effective is not None
    assert run.effective["num_inference_steps"] == 2
    assert run.effective["ignored"] == ["odd"]
    assert run.timings is not None
    assert {"queued", "load", "encode", "denoise", "decode", "write", "total"} == set(run.timings)
    assert (body["size"], body["quality"], body["output_format"], body["safety_identifier"]) == ("64x64", "low", "png", "me")
    assert body["usage"]["total_tokens"] == body["usage"]["input_tokens"] + body["usage"]["output_tokens"] == 4 + 2 * 16
    assert (answer.seeds, answer.ignored) == ((41, 42), ("odd",))


async def test_a_routers_run_is_carried_on_under_its_id(bench: Bench):
    attempt = await bench.router_opened("run_routers")

    await bench.make(ASK, run_id="run_routers", attempt=attempt)

    run = await bench.catalog.runs.get("run_routers")
    assert (run.status, run.source, [each.status for each in run.attempts]) == (
        RunStatus.SUCCEEDED,
        "router",
        [AttemptStatus.SUCCEEDED],
    )


async def test_a_run_of_a_router_with_another_catalog_is_recorded_here_too(bench: Bench):
    await bench.make(ASK, run_id="run_elsewhere", attempt=3)

    run = await bench.catalog.runs.get("run_elsewhere")
    assert (run.status, run.source, run.current_attempt) == (RunStatus.SUCCEEDED, "router", 3)


async def test_an_attempt_that_was_overtaken_stores_nothing(bench: Bench):
    attempt = await bench.router_opened("run_routers")
    task = bench.make(ASK._replace(num_inference_steps=20), run_id="run_routers", attempt=attempt)
    await bench.step_made()
    await bench.catalog.runs.begin_attempt("run_routers", node="other")

    with pytest.raises(AttemptFenced):
        await task

    run = await bench.catalog.runs.get("run_routers")
    assert (run.status, run.images, run.attempts[0].status) == (RunStatus.RUNNING, (), AttemptStatus.ABANDONED)


async def test_a_client_that_leaves_cancels_its_run_and_frees_the_worker(bench: Bench):
    task = bench.make(ENDLESS)
    run_id = await bench.step_made()

    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert (await bench.catalog.runs.get(run_id)).status is RunStatus.CANCELLED
    await asyncio.wait_for(bench.make(ASK), BOUND_S)


async def test_an_operators_cancel_ends_a_running_and_a_waiting_run(bench: Bench):
    first = bench.make(ENDLESS)
    first_id = await bench.step_made()
    second = bench.make(ASK, run_id="run_second", attempt=await bench.router_opened("run_second"))
    await until(lambda: len(bench.scheduler.jobs) == 2)

    assert bench.scheduler.cancel("run_second")
    with pytest.raises(RunCancelled):
        await second
    assert bench.scheduler.cancel(first_id)
    with pytest.raises(RunCancelled):
        await first

    run = await bench.catalog.runs.get(first_id)
    assert (run.status, run.error_code) == (RunStatus.CANCELLED, "cancelled")
    routers = await bench.catalog.runs.get("run_second")
    assert (routers.status, routers.attempts[0].error_code) == (RunStatus.QUEUED, "cancelled")


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(BOUND_S):
        while not holds():
            await asyncio.sleep(0.01)


async def test_a_worker_killed_under_a_run_is_a_failed_run_with_a_cause(bench: Bench):
    task = bench.make(ENDLESS)
    run_id = await bench.step_made()
    assert bench.worker.pid is not None

    os.kill(bench.worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerLost):
        await task

    run = await bench.catalog.runs.get(run_id)
    assert (run.status, run.error_code) == (RunStatus.FAILED, "insufficient_memory")
    await asyncio.wait_for(bench.make(ASK), BOUND_S)


@pytest.mark.parametrize("preset", [Preset.FULL, Preset.FAST], ids=["joining it", "behind it"])
async def test_who_was_sent_while_another_run_ended_is_made_all_the_same_when_that_ends_the_worker(
    bench: Bench, preset: Preset
):
    ask, joins = ASK._replace(preset=preset), preset is Preset.FULL
    before = await asyncio.wait_for(bench.make(ask), BOUND_S)
    tasks = [bench.make(ASK._replace(size=Size(512, 512))), bench.make(ask)]

    def both_sent() -> bool:
        shares = [job.share for job in bench.scheduler.jobs if job.share is not None]
        return len(shares) == 2 and sum(share.runs for share in set(shares)) == 2 and (len(set(shares)) == 1) is joins

    await until(both_sent)
    assert bench.worker.pid is not None
    restarts = bench.worker.restarts
    os.kill(bench.worker.pid, signal.SIGKILL)
    first, second = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), BOUND_S)

    # Of those that were at work together nobody knows which it was.
    assert isinstance(first, Answer if joins else WorkerLost)
    assert isinstance(second, Answer)
    assert second.pictures[0].content == before.pictures[0].content
    assert bench.worker.restarts == restarts + 1


async def test_what_must_be_exact_joins_its_like_on_a_cpu_and_nobody_on_a_gpu(bench: Bench, tiny_models: Models):
    model, cpu = tiny_models.by_name["sd15"], await bench.worker.wait_ready()
    spec = resolve(ASK, model.name, model.profile, embed_parameters=False).spec

    def key(device: DeviceStatus) -> Hashable | None:
        asked = bench.runs._asked(model, ASK.task, spec, device)
        return bench.runs._sharing(asked, device, spec, alone=True).steps_key

    assert key(cpu) == steps_key(spec, Family.SD15, exact=True)
    assert key(cpu.model_copy(update={"kind": "cuda"})) is None


async def test_of_a_routers_run_only_the_attempt_fails(bench: Bench):
    attempt = await bench.router_opened("run_routers")
    task = bench.make(ENDLESS, run_id="run_routers", attempt=attempt)
    await bench.step_made()
    assert bench.worker.pid is not None

    os.kill(bench.worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerLost):
        await task

    run = await bench.catalog.runs.get("run_routers")
    assert (run.status, run.attempts[0].status) == (RunStatus.RUNNING, AttemptStatus.FAILED)
    assert run.attempts[0].error_code == "insufficient_memory"


async def test_a_full_queue_opens_no_run(bench: Bench):
    tasks = [bench.make(ENDLESS)]
    await bench.step_made()
    tasks.append(bench.make(ASK))
    await until(lambda: len(bench.scheduler.jobs) == 2)
    # The second has its place before it has its row.
    while len(await bench.catalog.runs.list()) < 2:
        pass

    with pytest.raises(TooManyRequests):
        await bench.make(ASK)

    assert len(await bench.catalog.runs.list()) == 2


@pytest.mark.parametrize(
    ("request_", "error"),
    [(ASK._replace(model="nobody"), UnknownModel), (ASK._replace(num_inference_steps=1000), InvalidRequest)],
)
async def test_a_wrong_request_is_refused_before_anything_is_recorded(
    bench: Bench, request_: ImageRequest, error: type[AquatintError]
):
    with pytest.raises(error):
        await bench.make(request_)

    assert await bench.catalog.runs.list() == []


async def test_a_worker_without_memory_for_a_picture_says_so_and_makes_the_next(bench: Bench):
    # A new one: what earlier pictures left in the heap of the old would be room enough.
    before = bench.worker.pid
    assert before is not None
    os.kill(before, signal.SIGKILL)
    await until(lambda: bench.worker.ready and bench.worker.pid != before)
    await bench.make(ASK)
    assert bench.worker.pid is not None
    process = psutil.Process(bench.worker.pid)
    unlimited = process.rlimit(psutil.RLIMIT_AS)
    process.rlimit(psutil.RLIMIT_AS, (process.memory_info().vms, unlimited[1]))
    large = ASK._replace(size=Size(512, 512))
    try:
        with pytest.raises(OutOfDeviceMemory, match=r"512x512 by 'sd15'; .* 360x360 should fit"):
            await asyncio.wait_for(bench.make(large), BOUND_S)
    finally:
        process.rlimit(psutil.RLIMIT_AS, unlimited)

    (failed,) = await bench.catalog.runs.list(status=RunStatus.FAILED)
    assert failed.error_code == "out_of_memory"
    with pytest.raises(OutOfDeviceMemory, match="360x360"):
        await bench.make(large)
    assert len(await bench.catalog.runs.list()) == 2
    assert len((await bench.make(ASK)).pictures) == 1
    assert process.is_running()


async def test_measured_seconds_are_learned(bench: Bench):
    await bench.make(ASK)

    assert bench.runs._pace.seconds_per_unit["sd15"] > 0
