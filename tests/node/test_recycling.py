"""A worker that holds memory without use is replaced between runs, and no run hears of it."""

import asyncio

from common.images_api import Size
from node.metrics import NodeMetrics
from node.models import Models
from node.recycling import TRUSTED_S, Recycling
from node.status import UNKNOWN_DEVICE
from node.worker.handle import Worker
from node.worker.orders import Memory
from tests.node.test_residency import Clock
from tests.node.test_runs import ASK, BOUND_S, Bench, bench, worker

__all__ = ["bench", "worker"]

GIB = 1024**3


def recycling(bench: Bench, *, allowed_bytes: int, clock: Clock | None = None) -> Recycling:
    ladder = bench.runs._ladder
    return Recycling(bench.worker, ladder._residency, bench.scheduler, allowed_bytes=allowed_bytes, clock=clock or Clock())


def seem_large(worker: Worker) -> None:
    """As told in the midst of a run: far more than there is when the worker is asked behind it."""
    assert worker.first_memory is not None
    worker.memory = Memory(worker.first_memory.main_bytes + 3 * GIB, 0)


async def test_a_worker_that_holds_too_much_is_replaced_between_two_runs_and_both_are_right(bench: Bench):
    before = await bench.make(ASK)
    replaced, pid = bench.worker.replacements, bench.worker.pid
    at_work = bench.make(ASK._replace(size=Size(256, 256), num_inference_steps=30))
    await bench.step_made()
    seem_large(bench.worker)
    looking = asyncio.create_task(recycling(bench, allowed_bytes=1).look())
    waiting = bench.make(ASK)

    async with asyncio.timeout(BOUND_S):
        first, looked, second = await asyncio.gather(at_work, looking, waiting)

    assert looked
    assert len(first.pictures) == 1
    assert second.pictures[0].content == before.pictures[0].content
    assert (bench.worker.replacements, bench.worker.restarts, bench.worker.last_loss) == (replaced + 1, 0, None)
    assert bench.worker.pid != pid
    assert bench.scheduler.jobs == ()


async def test_what_was_pinned_is_loaded_and_pinned_in_the_new_worker(bench: Bench, tiny_models: Models):
    residency = bench.runs._ladder._residency
    await residency.ensure(tiny_models.by_name["z-image"].load_order("cpu", "float32"), pin=True)
    await bench.make(ASK)
    seem_large(bench.worker)

    async with asyncio.timeout(BOUND_S):
        assert await recycling(bench, allowed_bytes=1).look()

    assert (residency.residents, residency.pinned) == (["z-image"], ["z-image"])


async def test_one_that_holds_what_it_may_is_left_alone(bench: Bench):
    await bench.make(ASK)
    pid = bench.worker.pid

    assert not await recycling(bench, allowed_bytes=4 * GIB).look()

    assert bench.worker.pid == pid


async def test_one_that_gives_back_what_it_held_stays_and_is_not_asked_again_at_once(bench: Bench):
    await bench.make(ASK)
    pid, clock = bench.worker.pid, Clock()
    watching = recycling(bench, allowed_bytes=2 * GIB, clock=clock)

    async def orders_of_a_look() -> int:
        before = next(bench.worker._numbers)
        seem_large(bench.worker)
        assert not await watching.look()
        return next(bench.worker._numbers) - before - 1

    assert [await orders_of_a_look() for _ in range(2)] == [1, 0]
    clock.now_s += TRUSTED_S
    assert await orders_of_a_look() == 1
    assert bench.worker.pid == pid


async def test_weights_are_no_leak(bench: Bench, tiny_models: Models):
    await bench.make(ASK)
    weights_bytes = tiny_models.by_name["sd15"].checkpoint.memory_bytes("float32")
    watching = recycling(bench, allowed_bytes=GIB)
    assert bench.worker.first_memory is not None
    first_bytes = bench.worker.first_memory.main_bytes

    assert watching._excess(Memory(first_bytes + weights_bytes + GIB, 0)) is None
    assert "beyond its start and its weights" in (watching._excess(Memory(first_bytes + weights_bytes + GIB + 1, 0)) or "")


async def test_memory_of_the_device_counts_when_nothing_is_loaded(bench: Bench):
    await bench.make(ASK)
    watching = recycling(bench, allowed_bytes=GIB)
    assert bench.worker.first_memory is not None
    full = Memory(bench.worker.first_memory.main_bytes, 2 * GIB)

    assert watching._excess(full) is None
    await bench.runs._ladder._residency.unload("sd15")

    assert watching._excess(full) == f"it holds {2 * GIB:,} bytes of the device with nothing loaded"


def test_replacements_and_the_workers_memory_are_metrics():
    metrics = NodeMetrics()
    for replacements in (0, 2):
        held = Memory(5, 7)
        metrics.show(device=UNKNOWN_DEVICE, jobs=[], restarts=0, replacements=replacements, held=held, ready=True, resident=0)

    value = metrics.registry.get_sample_value
    assert value("aquatint_node_worker_replacements_total") == 2
    assert value("aquatint_node_worker_memory_bytes", {"kind": "main"}) == 5
    assert value("aquatint_node_worker_memory_bytes", {"kind": "device"}) == 7
