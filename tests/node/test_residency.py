"""Loads happen once, what is least needed leaves, and failures are remembered for a while."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest

from common.errors import Conflict
from common.images_api.loras import MAX_LORAS
from node.beside import MAX_IDLE_LORA_BYTES, Beside
from node.engines.base import EngineFailed, LoadOrder, OutOfDeviceMemory
from node.models import Models
from node.offload import Offload
from node.residency import FAILURE_MEMORY_S, QUARANTINED_AFTER, Quarantined, Residency
from node.worker.causes import WorkerLost, lost


@dataclass
class Device:
    """Stands where the worker stands: takes loads and unloads, and fails when told to."""

    loads: list[str] = field(default_factory=list)
    unloads: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    fails_with: Exception | None = None
    may_load: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.may_load.set()

    async def load(self, order: LoadOrder) -> None:
        self.loads.append(order.model)
        await self.may_load.wait()
        if self.fails_with is not None:
            raise self.fails_with

    async def unload(self, model: str) -> None:
        self.unloads.append(model)

    async def drop_loras(self, model: str, sha256s: Sequence[str]) -> None:
        self.dropped += [f"{model} {sha256}" for sha256 in sha256s]


def nets(**sizes: int) -> Beside:
    return Beside({"control": sizes})


def loras(**sizes: int) -> Beside:
    return Beside(loras=sizes)


@dataclass
class Clock:
    """Seconds that pass when the test says so."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def orders(tiny_models: Models) -> dict[str, LoadOrder]:
    return {model.name: model.load_order("cpu", "float32") for model in tiny_models}


async def test_twenty_first_requests_are_one_load(orders: dict[str, LoadOrder]):
    device = Device()
    device.may_load.clear()
    residency = Residency(device)

    async def use() -> None:
        async with residency.hold(orders["sd15"]):
            assert residency.is_resident("sd15")

    tasks = [asyncio.create_task(use()) for _ in range(20)]
    await asyncio.sleep(0)
    assert residency.is_loading("sd15")
    device.may_load.set()
    await asyncio.gather(*tasks)

    assert device.loads == ["sd15"]
    assert not residency.is_loading("sd15")


async def test_a_caller_that_leaves_does_not_stop_the_load_for_the_others(orders: dict[str, LoadOrder]):
    device = Device()
    device.may_load.clear()
    residency = Residency(device)
    leaver, stayer = (asyncio.create_task(residency.ensure(orders["sd15"])) for _ in range(2))
    await asyncio.sleep(0)

    leaver.cancel()
    device.may_load.set()
    await stayer

    assert device.loads == ["sd15"]


async def test_the_least_recently_used_leaves_when_the_budget_is_full(orders: dict[str, LoadOrder]):
    device = Device()
    sizes = {name: order.checkpoint.memory_bytes("float32") for name, order in orders.items()}
    residency = Residency(device, budget_bytes=lambda: sizes["z-image"] + sizes["sdxl-turbo"])
    for name in ("sd15", "sdxl", "sd15", "sdxl-turbo"):
        await residency.ensure(orders[name])
    assert device.unloads == []

    await residency.ensure(orders["z-image"])

    assert device.unloads == ["sdxl", "sd15"]
    assert [name for name in orders if residency.is_resident(name)] == ["sdxl-turbo", "z-image"]


async def test_at_most_so_many_stay(orders: dict[str, LoadOrder]):
    device = Device()
    residency = Residency(device, max_resident=1)

    for name in ("sd15", "sdxl", "sd15"):
        await residency.ensure(orders[name])

    assert device.loads == ["sd15", "sdxl", "sd15"]
    assert device.unloads == ["sd15", "sdxl"]


async def test_what_is_in_use_or_pinned_never_leaves(orders: dict[str, LoadOrder]):
    device = Device()
    residency = Residency(device, max_resident=2)
    await residency.ensure(orders["sd15"], pin=True)

    async with residency.hold(orders["sdxl"]):
        with pytest.raises(OutOfDeviceMemory, match=r"no room for 'z-image' .*\(sd15, sdxl\)"):
            await residency.ensure(orders["z-image"])
        with pytest.raises(Conflict):
            await residency.unload("sdxl")

    await residency.ensure(orders["z-image"])
    assert device.unloads == ["sdxl"]
    assert await residency.unload("sd15")
    assert not await residency.unload("sd15")


async def test_a_model_larger_than_the_budget_is_refused_before_it_is_loaded(orders: dict[str, LoadOrder]):
    device = Device()

    with pytest.raises(OutOfDeviceMemory, match="this node has 1,000 for weights"):
        await Residency(device, budget_bytes=lambda: 1000).ensure(orders["sd15"])
    assert device.loads == []


async def test_a_failed_load_is_remembered_then_tried_again(orders: dict[str, LoadOrder]):
    device, clock = Device(fails_with=EngineFailed("broken file")), Clock()
    outcomes: list[tuple[str, bool]] = []
    residency = Residency(device, clock=clock, on_load=lambda model, seconds, succeeded: outcomes.append((model, succeeded)))
    for _ in range(3):
        with pytest.raises(EngineFailed, match="broken file"):
            await residency.ensure(orders["sd15"])
    assert device.loads == ["sd15"]
    assert residency.failure("sd15") == "broken file"

    clock.now_s += FAILURE_MEMORY_S
    device.fails_with = None
    await residency.ensure(orders["sd15"])

    assert residency.failure("sd15") is None
    assert outcomes == [("sd15", False), ("sd15", True)]


async def test_one_lost_worker_says_nothing_against_the_model(orders: dict[str, LoadOrder]):
    device = Device(fails_with=lost(-9))
    residency = Residency(device)
    with pytest.raises(type(lost(-9))):
        await residency.ensure(orders["sd15"])
    residency.forget_all()

    device.fails_with = None
    await residency.ensure(orders["sd15"])

    assert device.loads == ["sd15", "sd15"]


async def test_what_nobody_uses_is_unloaded_after_a_while(orders: dict[str, LoadOrder]):
    device, clock = Device(), Clock()
    residency = Residency(device, clock=clock)
    await residency.ensure(orders["sd15"], pin=True)
    await residency.ensure(orders["sdxl"])
    async with residency.hold(orders["z-image"]):
        clock.now_s = 100
        assert await residency.unload_idle(100) == ["sdxl"]
    assert await residency.unload_idle(100) == []
    clock.now_s = 200
    assert await residency.unload_idle(100) == ["z-image"]


async def test_when_memory_runs_out_the_idle_make_room(orders: dict[str, LoadOrder]):
    device = Device()
    residency = Residency(device)
    await residency.ensure(orders["sd15"])
    async with residency.hold(orders["sdxl"]):
        assert await residency.unload_others("sdxl")
        assert not await residency.unload_others("sdxl")

    assert device.unloads == ["sd15"]


async def test_a_new_worker_holds_nothing(orders: dict[str, LoadOrder]):
    device = Device()
    residency = Residency(device)
    await residency.ensure(orders["sd15"])
    residency.forget_all()

    assert not residency.is_resident("sd15")


async def test_what_was_pinned_is_pinned_again_when_a_new_worker_has_loaded_it(orders: dict[str, LoadOrder]):
    residency = Residency(Device())
    await residency.ensure(orders["sd15"], pin=True)
    residency.forget_all()
    assert residency.pinned == []

    await residency.ensure(orders["sd15"])
    assert residency.pinned == ["sd15"]
    assert await residency.unload("sd15")
    await residency.ensure(orders["sd15"])
    assert residency.pinned == []


async def killed_by(residency: Residency, order: LoadOrder) -> None:
    """One run of a model under which the worker dies."""

    async def run() -> None:
        async with residency.hold(order):
            residency.forget_all()
            raise lost(-6)

    with pytest.raises(WorkerLost):
        await run()


async def test_a_model_that_ends_worker_after_worker_is_quarantined_until_an_operator_loads_it(orders: dict[str, LoadOrder]):
    device = Device()
    residency = Residency(device)
    for _ in range(QUARANTINED_AFTER):
        await killed_by(residency, orders["sd15"])
    loads = len(device.loads)

    with pytest.raises(Quarantined, match=r"3 times in a row.*aborted in native code"):
        await residency.ensure(orders["sd15"])

    assert len(device.loads) == loads
    assert "sd15" in (residency.failure("sd15") or "")
    assert residency.failure("sdxl") is None
    residency.pardon("sd15")
    await residency.ensure(orders["sd15"])


async def test_loads_that_end_the_worker_count_too(orders: dict[str, LoadOrder]):
    device = Device()
    residency = Residency(device)
    for _ in range(QUARANTINED_AFTER):
        device.fails_with = lost(-11)
        with pytest.raises(WorkerLost):
            await residency.ensure(orders["sd15"])

    with pytest.raises(Quarantined, match="bad memory access"):
        await residency.ensure(orders["sd15"])


async def test_a_run_that_ends_well_clears_a_model(orders: dict[str, LoadOrder]):
    residency = Residency(Device())
    for _ in range(3):
        for _ in range(QUARANTINED_AFTER - 1):
            await killed_by(residency, orders["sd15"])
        async with residency.hold(orders["sd15"]):
            pass

    assert residency.failure("sd15") is None


async def test_what_a_run_needs_beside_its_model_counts_and_makes_room(orders: dict[str, LoadOrder]):
    device = Device()
    sizes = {name: order.checkpoint.memory_bytes("float32") for name, order in orders.items()}
    residency = Residency(device, budget_bytes=lambda: sizes["sd15"] + sizes["sdxl"] + 1000)
    await residency.ensure(orders["sdxl"])

    async with residency.hold(orders["sd15"], nets(edges=1000)):
        assert device.unloads == []
    async with residency.hold(orders["sd15"], nets(edges=1000, depth=1)):
        assert device.unloads == ["sdxl"]
        # What that run loaded stays, and is counted: there is no room for the other model any more.
        with pytest.raises(OutOfDeviceMemory, match="no room for 'sdxl'"):
            await residency.ensure(orders["sdxl"])
    async with residency.hold(orders["sd15"], nets(edges=1000)):
        pass
    await residency.ensure(orders["sdxl"])
    assert device.unloads == ["sdxl"]


async def test_what_never_fits_beside_a_model_is_refused_and_the_model_stays(orders: dict[str, LoadOrder]):
    device = Device()
    residency = Residency(device, budget_bytes=lambda: orders["sd15"].checkpoint.memory_bytes("float32") + 10)

    with pytest.raises(OutOfDeviceMemory, match="no room for 'edges'"):
        async with residency.hold(orders["sd15"], nets(edges=11)):
            pass
    async with residency.hold(orders["sd15"], nets(edges=10)):
        pass

    assert device.loads == ["sd15"]


async def test_nets_of_one_kind_take_each_others_place_and_those_of_another_stay(orders: dict[str, LoadOrder]):
    residency = Residency(Device())
    for beside in (Beside({"control": {"edges": 5}, "image_prompt": {"adapter": 70}}), nets(depth=6), nets(depth=6)):
        async with residency.hold(orders["sd15"], beside):
            pass

    assert residency._residents["sd15"].all_bytes == orders["sd15"].device_bytes + 6 + 70


async def test_idle_loras_leave_before_models_do_the_longest_idle_first(orders: dict[str, LoadOrder]):
    device = Device()
    sizes = {name: order.device_bytes for name, order in orders.items()}
    residency = Residency(device, budget_bytes=lambda: sizes["sd15"] + sizes["sdxl"] + 100)
    await residency.ensure(orders["sdxl"])
    for beside in (loras(ink=40), loras(oil=40), loras(ink=40)):
        async with residency.hold(orders["sd15"], beside):
            pass
    assert (device.dropped, device.unloads) == ([], [])

    async with residency.hold(orders["sd15"], loras(chalk=40)):
        assert device.dropped == ["sd15 oil"]
    async with residency.hold(orders["sdxl"], nets(edges=50)):
        assert device.dropped == ["sd15 oil", "sd15 ink"]
        assert residency._residents["sd15"].all_bytes == sizes["sd15"] + 40
    async with residency.hold(orders["sd15"], loras(chalk=40, ink=40)):
        # What it comes with may not leave for it, and the net of the other model is not given back alone.
        assert (device.dropped, device.unloads) == (["sd15 oil", "sd15 ink"], ["sdxl"])


async def test_a_load_makes_room_of_idle_loras_first(orders: dict[str, LoadOrder]):
    device = Device()
    budget_bytes = orders["sd15"].device_bytes + orders["sdxl"].device_bytes
    residency = Residency(device, budget_bytes=lambda: budget_bytes)
    async with residency.hold(orders["sd15"], loras(ink=1, oil=1)):
        pass

    await residency.ensure(orders["sdxl"])

    assert (device.dropped, device.unloads) == (["sd15 ink", "sd15 oil"], [])


async def test_loras_of_a_run_that_goes_on_never_leave(orders: dict[str, LoadOrder]):
    device = Device()
    residency = Residency(device, budget_bytes=lambda: orders["sd15"].device_bytes + orders["sdxl"].device_bytes)
    async with residency.hold(orders["sd15"], loras(ink=1)):
        with pytest.raises(OutOfDeviceMemory, match="no room for 'sdxl'"):
            await residency.ensure(orders["sdxl"])

    assert device.dropped == []


async def test_idle_loras_beside_a_model_are_bounded_in_number_and_bytes(orders: dict[str, LoadOrder]):
    device = Device()
    residency = Residency(device)
    for number in range(MAX_LORAS + 2):
        async with residency.hold(orders["sd15"], loras(**{f"n{number}": 1})):
            pass
    assert device.dropped == ["sd15 n0", "sd15 n1"]

    async with residency.hold(orders["sd15"], loras(large=MAX_IDLE_LORA_BYTES + 1)):
        pass
    assert device.dropped[2:] == ["sd15 n2"]
    async with residency.hold(orders["sd15"], loras(small=1)):
        pass

    # All that is older than the large one leaves with it: they go in the order of their last use.
    assert device.dropped[3:] == [f"sd15 n{number}" for number in range(3, MAX_LORAS + 2)] + ["sd15 large"]


async def test_after_memory_ran_out_the_loras_that_are_not_used_leave_too(orders: dict[str, LoadOrder]):
    device = Device()
    residency = Residency(device)
    for beside in (loras(ink=1), loras(oil=1)):
        async with residency.hold(orders["sd15"], beside):
            pass

    assert await residency.unload_others("sd15", spared=["oil"])
    assert not await residency.unload_others("sd15", spared=["oil"])

    assert device.dropped == ["sd15 ink"]


async def test_who_needs_a_model_loaded_with_less_waits_until_nobody_uses_it_as_it_is(orders: dict[str, LoadOrder]):
    device = Device()
    residency = Residency(device)
    less = replace(orders["sd15"], offload=Offload.MODEL)
    entered = asyncio.Event()

    async def use() -> None:
        async with residency.hold(less):
            entered.set()

    async with residency.hold(orders["sd15"]):
        waiting = asyncio.create_task(use())
        await asyncio.sleep(0)
        assert not entered.is_set()
    await waiting

    assert device.loads == ["sd15", "sd15"]
    assert residency._residents["sd15"].order.offload is Offload.MODEL
