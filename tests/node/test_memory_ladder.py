"""What a node does when memory runs out under a run, in order, and what it says when nothing is left."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from common.errors import OutOfDeviceMemory
from common.images_api import Size
from common.node_api import DeviceStatus
from node.beside import Beside
from node.memory_ladder import Asked, MemoryLadder
from node.memory_limits import MemoryLimits
from node.models import Models
from node.offload import Offload
from node.residency import Residency
from node.worker.handle import Product
from tests.node.test_residency import Device

CPU = DeviceStatus(kind="cpu", name="a CPU", memory_total_bytes=1, memory_free_bytes=1)
PRODUCT = Product((), {}, 0, False, "")
SIZE = Size(512, 512)


@pytest.fixture
def residency() -> Residency:
    return Residency(Device())


@pytest.fixture
def ladder(residency: Residency) -> MemoryLadder:
    return MemoryLadder(residency, MemoryLimits(), dtype="auto")


def attempts(fails: int) -> tuple[Callable[[], Awaitable[Product]], list[int]]:
    """A run for which memory runs out so many times, and the numbers of its attempts."""
    made: list[int] = []

    async def attempt() -> Product:
        made.append(len(made))
        if len(made) <= fails:
            raise OutOfDeviceMemory("out of memory")
        return PRODUCT

    return attempt, made


def asked(models: Models, name: str = "sd15", size: Size = SIZE, task: str = "generation") -> Asked:
    return Asked(models.by_name[name], task, size)


async def test_a_run_that_fits_is_made_once(ladder: MemoryLadder, residency: Residency, tiny_models: Models):
    attempt, made = attempts(0)

    fitted = await ladder.make(asked(tiny_models), CPU, attempt)

    assert (fitted.product, made) == (PRODUCT, [0])
    assert residency.is_resident("sd15")
    assert ladder.limits(tiny_models.by_name["sd15"], CPU) == {}


async def test_the_other_models_leave_before_a_run_is_given_up(ladder: MemoryLadder, residency: Residency, tiny_models: Models):
    await residency.ensure(tiny_models.by_name["sdxl"].load_order("cpu", "float32"))
    attempt, made = attempts(1)

    await ladder.make(asked(tiny_models), CPU, attempt)

    assert made == [0, 1]
    assert not residency.is_resident("sdxl")


async def test_what_fits_nowhere_is_told_with_a_size_that_would_and_not_tried_again(ladder: MemoryLadder, tiny_models: Models):
    attempt, made = attempts(9)

    with pytest.raises(OutOfDeviceMemory, match=r"for a generation of 512x512 by 'sd15'; .* 360x360 should fit") as told:
        await ladder.make(asked(tiny_models), CPU, attempt)

    assert (told.value.code, told.value.param, told.value.retryable, made) == ("out_of_memory", "size", False, [0])
    with pytest.raises(OutOfDeviceMemory, match="360x360"):
        ladder.check(asked(tiny_models), CPU)
    with pytest.raises(OutOfDeviceMemory):
        ladder.check(asked(tiny_models, size=Size(1024, 1024)), CPU)
    for fits in (asked(tiny_models, size=Size(496, 512)), asked(tiny_models, task="edit"), asked(tiny_models, "sdxl")):
        ladder.check(fits, CPU)
    ladder.check(asked(tiny_models), CPU.model_copy(update={"name": "another CPU"}))


async def test_the_next_smaller_picture_is_made_and_is_the_size_told_from_then_on(ladder: MemoryLadder, tiny_models: Models):
    with pytest.raises(OutOfDeviceMemory):
        await ladder.make(asked(tiny_models), CPU, attempts(9)[0])

    await ladder.make(asked(tiny_models, size=Size(448, 448)), CPU, attempts(0)[0])

    with pytest.raises(OutOfDeviceMemory, match="448x448 should fit"):
        ladder.check(asked(tiny_models), CPU)


async def test_an_operator_can_have_it_tried_again(ladder: MemoryLadder, tiny_models: Models):
    with pytest.raises(OutOfDeviceMemory):
        await ladder.make(asked(tiny_models), CPU, attempts(9)[0])

    ladder.forget(tiny_models.by_name["sd15"])

    ladder.check(asked(tiny_models), CPU)


async def test_weights_that_do_not_fit_say_nothing_of_sizes(tiny_models: Models):
    ladder = MemoryLadder(Residency(Device(), budget_bytes=lambda: 1000), MemoryLimits(), dtype="auto")

    with pytest.raises(OutOfDeviceMemory, match="1,000 for weights") as told:
        await ladder.make(asked(tiny_models), CPU, attempts(0)[0])

    assert told.value.param is None
    ladder.check(asked(tiny_models), CPU)


GPU = DeviceStatus(kind="cuda", name="a GPU", memory_total_bytes=1, memory_free_bytes=1)


def offload_of(residency: Residency, name: str = "sd15") -> Offload:
    return residency._residents[name].order.offload


async def test_on_a_gpu_weights_leave_the_device_step_by_step_before_a_run_is_given_up(
    ladder: MemoryLadder, residency: Residency, tiny_models: Models
):
    attempt, made = attempts(2)

    fitted = await ladder.make(asked(tiny_models), GPU, attempt)

    assert len(made) == 3
    assert fitted.plan.offload.mode is offload_of(residency) is Offload.GROUP
    assert "memory ran out for pictures as large as this" in fitted.plan.offload.reason
    with pytest.raises(OutOfDeviceMemory, match="should fit"):
        await ladder.make(asked(tiny_models, "sdxl"), GPU, attempts(9)[0])


async def test_the_next_picture_as_large_begins_where_the_last_was_made_and_a_loaded_model_is_not_loaded_again_for_less(
    tiny_models: Models,
):
    device = Device()
    residency = Residency(device)
    ladder = MemoryLadder(residency, MemoryLimits(), dtype="auto")
    await ladder.make(asked(tiny_models), GPU, attempts(1)[0])
    assert device.loads == ["sd15", "sd15"]

    for size in (SIZE, Size(64, 64)):
        await ladder.make(asked(tiny_models, size=size), GPU, attempts(0)[0])
    assert device.loads == ["sd15", "sd15"]
    await residency.unload("sd15")
    await ladder.make(asked(tiny_models, size=Size(64, 64)), GPU, attempts(0)[0])
    assert offload_of(residency) is Offload.NONE
    await ladder.make(asked(tiny_models), GPU, attempts(0)[0])
    assert offload_of(residency) is Offload.MODEL


async def test_a_load_that_memory_runs_out_under_is_tried_again_with_less_on_the_device(tiny_models: Models):
    device = Device(fails_with=OutOfDeviceMemory("out of memory"))
    residency = Residency(device, on_load=lambda model, seconds, succeeded: setattr(device, "fails_with", None))
    ladder = MemoryLadder(residency, MemoryLimits(), dtype="auto")

    await ladder.make(asked(tiny_models), GPU, attempts(0)[0])

    assert (device.loads, offload_of(residency)) == (["sd15", "sd15"], Offload.MODEL)


async def test_an_operator_can_forbid_it(residency: Residency, tiny_models: Models):
    ladder = MemoryLadder(residency, MemoryLimits(), dtype="auto", offload="none")
    attempt, made = attempts(9)

    with pytest.raises(OutOfDeviceMemory, match="should fit"):
        await ladder.make(asked(tiny_models), GPU, attempt)

    assert made == [0]


async def test_two_runs_that_fail_together_both_end_with_less_on_the_device_and_no_limit_is_remembered(
    ladder: MemoryLadder, residency: Residency, tiny_models: Models
):
    """As of two that shared a pass: both are there when memory runs out under it, and each is then tried by itself."""
    both_there, tried = asyncio.Barrier(2), list[Offload]()

    def run() -> Callable[[], Awaitable[Product]]:
        first = True

        async def attempt() -> Product:
            nonlocal first
            tried.append(offload_of(residency))
            if first:
                first = False
                await both_there.wait()
            await asyncio.sleep(0)
            if tried[-1] is not Offload.GROUP:
                raise OutOfDeviceMemory("out of memory")
            return PRODUCT

        return attempt

    first, second = await asyncio.gather(*(ladder.make(asked(tiny_models), GPU, run()) for _ in range(2)))

    assert first.plan.offload.mode is second.plan.offload.mode is Offload.GROUP
    assert tried == [Offload.NONE, Offload.NONE, Offload.MODEL, Offload.MODEL, Offload.GROUP, Offload.GROUP]
    assert ladder.limits(tiny_models.by_name["sd15"], GPU) == {}


async def test_a_limit_found_with_a_controlnet_is_none_of_the_plain_task_but_one_of_all_that_has_more(
    ladder: MemoryLadder, tiny_models: Models
):
    plain = asked(tiny_models)
    edges = replace(plain, beside=Beside({"control": {"edges": 1}}))
    with pytest.raises(OutOfDeviceMemory):
        await ladder.make(edges, CPU, attempts(9)[0])

    ladder.check(plain, CPU)
    ladder.check(replace(plain, beside=Beside({"control": {"depth": 1}})), CPU)
    assert ladder.limits(plain.model, CPU) == {}
    for more in (edges, replace(plain, beside=Beside({"control": {"edges": 1}}, {"a-lora": 1}))):
        with pytest.raises(OutOfDeviceMemory, match="360x360 should fit"):
            ladder.check(more, CPU)

    with pytest.raises(OutOfDeviceMemory):
        await ladder.make(replace(plain, size=Size(448, 448)), CPU, attempts(9)[0])
    with pytest.raises(OutOfDeviceMemory, match="should fit"):
        ladder.check(replace(edges, size=Size(448, 448)), CPU)


async def test_what_is_made_with_a_controlnet_lifts_the_limit_of_the_plain_task(ladder: MemoryLadder, tiny_models: Models):
    plain = asked(tiny_models)
    with pytest.raises(OutOfDeviceMemory):
        await ladder.make(plain, CPU, attempts(9)[0])

    await ladder.make(replace(plain, beside=Beside({"control": {"edges": 1}})), CPU, attempts(0)[0])

    ladder.check(plain, CPU)
