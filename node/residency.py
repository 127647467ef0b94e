"""Which pipelines are on the device: loads them once however many ask, and decides what leaves when another must come."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol

from common.errors import AquatintError, Conflict, Unavailable
from common.logs import get_logger
from node.beside import Beside, KeptLoras
from node.engines.base import LoadOrder, OutOfDeviceMemory
from node.offload import Offload
from node.worker.causes import WorkerLost

log = get_logger(__name__)

QUARANTINED_AFTER = 3
"""Workers lost under one model, with no run of it in between that ended, until it is not tried any more."""
NOTHING = Beside()
FAILURE_MEMORY_S = 30.0
"""A load that failed is not tried again for this long: it fails the same way, and takes the device while it does."""


class Quarantined(Unavailable):
    """This model ended worker after worker; each time every other model of the node had to be loaded again."""

    code, retryable = "model_quarantined", False

    def __init__(self, model: str, last: str) -> None:
        super().__init__(
            f"The model {model!r} ended this node's worker {QUARANTINED_AFTER} times in a row and is not tried any more "
            f"until an operator loads it. {last}"
        )


class Loader(Protocol):
    """What residency needs of a worker."""

    async def load(self, order: LoadOrder) -> None: ...

    async def unload(self, model: str) -> None: ...

    async def drop_loras(self, model: str, sha256s: Sequence[str]) -> None: ...


@dataclass(slots=True)
class Resident:
    """One loaded pipeline."""

    order: LoadOrder
    memory_bytes: int
    used_at_s: float
    users: int = 0
    pinned: bool = False
    nets: dict[str, Mapping[str, int]] = field(default_factory=dict)
    """As Beside has them: what stays of its last runs."""
    loras: KeptLoras = field(default_factory=KeptLoras)
    idle: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while nobody uses it."""

    def __post_init__(self) -> None:
        self.idle.set()

    @property
    def all_bytes(self) -> int:
        """Of the device, with everything that lies beside it."""
        return self.memory_bytes + self.loras.size_bytes + sum(sum(nets.values()) for nets in self.nets.values())


@dataclass(frozen=True, slots=True)
class _Failure:
    error: AquatintError
    order: LoadOrder
    at_s: float


class Residency:
    """The only caller of the worker's load and unload."""

    def __init__(
        self,
        loader: Loader,
        *,
        budget_bytes: Callable[[], int | None] = lambda: None,
        max_resident: int | None = None,
        on_load: Callable[[str, float, bool], None] = lambda model, seconds, succeeded: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """budget_bytes: asks for the device memory weights may take, which is not known before the worker has started;
        None for no bound. on_load: told of each load: model, seconds, whether it succeeded.
        """
        self._loader = loader
        self.budget_bytes = budget_bytes
        self._max_resident = max_resident
        self._on_load = on_load
        self._clock = clock
        self._residents: OrderedDict[str, Resident] = OrderedDict()
        self._to_keep: set[str] = set()
        """Models that were pinned: a worker that is lost takes them along, and the next load pins them again."""
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._failures: dict[str, _Failure] = {}
        self._losses: dict[str, int] = {}
        """Workers lost in a row, by the model that was being loaded or run."""
        self._noted: dict[str, WorkerLost] = {}
        """The last of them by model: a loss that ends several runs at once is one."""
        self._quarantined: dict[str, Quarantined] = {}
        # One change of what is on the device at a time: two loads at once could pass the budget together.
        self._changing = asyncio.Lock()

    @property
    def residents(self) -> list[str]:
        """What is on the device, the least recently used first."""
        return list(self._residents)

    @property
    def pinned(self) -> list[str]:
        """Those of them that are never evicted."""
        return [model for model, each in self._residents.items() if each.pinned]

    def is_resident(self, model: str) -> bool:
        """Whether a run on this model needs no load."""
        return model in self._residents

    def is_loading(self, model: str) -> bool:
        """Whether a load of it is under way or waits for its turn."""
        return model in self._loads

    def failure(self, model: str) -> str | None:
        """Why it cannot be loaded just now; None when nothing speaks against it."""
        failure = self._remembered(model, None)
        return None if failure is None else failure.message

    @asynccontextmanager
    async def hold(self, order: LoadOrder, beside: Beside = NOTHING) -> AsyncIterator[None]:
        """Have a model on the device for the length of the block; nothing evicts it meanwhile.

        beside: what the run has with it; room is made for that first.

        A caller that is cancelled leaves the load to go on for the others. A worker that is lost inside the block is
        held against the model; a block that ends well clears it.
        Raises: EngineFailed, OutOfDeviceMemory, WorkerLost, Quarantined, Unavailable.
        """
        resident = await self.ensure(order)
        resident.users += 1
        resident.idle.clear()
        try:
            if beside != NOTHING:
                await self._have_room_beside(resident, beside)
            yield
            self._losses.pop(order.model, None)
        except WorkerLost as loss:
            self._note(order.model, loss)
            raise
        finally:
            resident.users -= 1
            resident.used_at_s = self._clock()
            if not resident.users:
                resident.idle.set()

    async def ensure(self, order: LoadOrder, *, pin: bool = False) -> Resident:
        """Load a model if it is not there, or takes more of the device than it is to. pin: it is then never evicted,
        only unloaded by order.

        Raises: as `hold`.
        """
        # A loop, because between the end of a load and the waking of its waiters another load may have evicted it.
        while (resident := self._residents.get(order.model)) is None or _takes_more(resident, order):
            if resident is not None and resident.users:
                # What is in use stays as it is, and loaded as it is it was not enough for the run that asks now.
                await resident.idle.wait()
                continue
            failure = self._remembered(order.model, order)
            if failure is not None:
                raise failure
            load = self._loads.get(order.model)
            if load is None:
                load = asyncio.create_task(self._load(order))
                self._loads[order.model] = load
                load.add_done_callback(lambda done: self._load_ended(order.model, done))
            await asyncio.shield(load)
        if pin:
            self._to_keep.add(order.model)
            resident.pinned = True
        resident.used_at_s = self._clock()
        self._residents.move_to_end(order.model)
        return resident

    def pardon(self, model: str) -> None:
        """Forget what is held against a model: an operator wants it tried again."""
        self._losses.pop(model, None)
        self._quarantined.pop(model, None)
        self._failures.pop(model, None)

    async def unload(self, model: str) -> bool:
        """Unload by order, pinned or not. False when it was not there.

        Raises: Conflict: a run is using it.
        """
        async with self._changing:
            self._to_keep.discard(model)
            resident = self._residents.get(model)
            if resident is None:
                return False
            if resident.users:
                raise Conflict(f"The model {model!r} is in use.", code="model_in_use")
            await self._evict(model, "ordered")
            return True

    async def unload_others(self, model: str, spared: Collection[str] = ()) -> bool:
        """Unload every idle pipeline but one, and of that one the LoRAs beside the spared, after memory ran out.

        True when that freed anything.
        """
        async with self._changing:
            idle = [name for name, each in self._residents.items() if not each.users and name != model]
            for name in idle:
                await self._evict(name, "memory ran out")
            freed, own = bool(idle), self._residents.get(model)
            while own is not None and (sha256 := own.loras.oldest(spared)) is not None:
                await self._drop_loras(model, own, [sha256])
                freed = True
            return freed

    async def unload_idle(self, idle_s: float) -> list[str]:
        """Unload what nobody used for `idle_s` seconds and nobody pinned; gives their names."""
        async with self._changing:
            now_s = self._clock()
            idle = [n for n, each in self._residents.items() if self._evictable(each) and now_s - each.used_at_s >= idle_s]
            for name in idle:
                await self._evict(name, "idle")
            return idle

    def main_memory_bytes(self, device: str) -> int:
        """What of main memory the weights of everything loaded take."""
        if device != "cuda":
            return sum(each.all_bytes for each in self._residents.values())
        orders = [each.order for each in self._residents.values()]
        return sum(each.checkpoint.memory_bytes(each.dtype) for each in orders if each.offload is not Offload.NONE)

    async def leave_worker(self, replace: Callable[[], Awaitable[None]]) -> list[LoadOrder]:
        """Have the worker replaced while nothing is loaded or unloaded; gives the orders of what was pinned in it.

        Nobody may be using a model.
        """
        async with self._changing:
            pinned = [each.order for each in self._residents.values() if each.pinned]
            await replace()
            return pinned

    def forget_all(self) -> None:
        """The worker is gone, and everything loaded in it."""
        self._residents.clear()

    async def _load(self, order: LoadOrder) -> None:
        async with self._changing:
            needed_bytes = order.device_bytes
            before = self._residents.get(order.model)
            if before is not None and before.users:
                # Somebody came first: what is in use stays as it is.
                return
            if before is not None:
                await self._evict(order.model, f"to be loaded with offload {order.offload}")
            await self._make_room(order.model, needed_bytes)
            began_s = self._clock()
            try:
                await self._loader.load(order)
            except AquatintError as error:
                self._on_load(order.model, self._clock() - began_s, False)
                if isinstance(error, WorkerLost):
                    # Once may be chance; only several say something about the model.
                    self._note(order.model, error)
                else:
                    self._failures[order.model] = _Failure(error, order, self._clock())
                raise
            self._failures.pop(order.model, None)
            pinned = order.model in self._to_keep
            self._residents[order.model] = Resident(order, needed_bytes, self._clock(), pinned=pinned)
            self._on_load(order.model, self._clock() - began_s, True)

    async def _make_room(self, model: str, needed_bytes: int) -> None:
        """Evict the least recently used until the newcomer fits. Raises: OutOfDeviceMemory: it cannot."""
        budget_bytes = self.budget_bytes()
        if budget_bytes is not None and needed_bytes > budget_bytes:
            raise OutOfDeviceMemory(
                f"The weights of {model!r} need {needed_bytes:,} bytes; this node has {budget_bytes:,} for weights."
            )
        while self._is_full():
            await self._evict_one(model)
        while self._is_above(needed_bytes, budget_bytes):
            await self._free_some(model)

    async def _have_room_beside(self, resident: Resident, beside: Beside) -> None:
        """Free what is least needed until what a run has beside its model fits. Raises: OutOfDeviceMemory."""
        model = resident.order.model
        async with self._changing:
            await self._drop_loras(model, resident, resident.loras.excess(beside.loras))
            new_bytes = sum(
                sum(nets.values()) - sum(resident.nets.get(kind, {}).values()) for kind, nets in beside.nets.items()
            )
            while self._is_above(new_bytes + resident.loras.missing_bytes(beside.loras), self.budget_bytes()):
                await self._free_some(beside.shown, resident, beside.loras)
            resident.nets |= beside.nets
            resident.loras.use(beside.loras)

    async def _free_some(self, newcomer: str, own: Resident | None = None, wanted: Collection[str] = ()) -> None:
        """Give back the LoRA that was idle longest, by the use of its model; where there is none, a model.

        own: the model that the newcomer is for, whose other LoRAs are idle while it is in use; wanted: those it comes with.
        """
        for model, resident in self._residents.items():
            if resident is own or not resident.users:
                sha256 = resident.loras.oldest(wanted if resident is own else ())
                if sha256 is not None:
                    await self._drop_loras(model, resident, [sha256])
                    return
        await self._evict_one(newcomer)

    async def _drop_loras(self, model: str, resident: Resident, sha256s: Sequence[str]) -> None:
        if not sha256s:
            return
        await self._loader.drop_loras(model, sha256s)
        for sha256 in sha256s:
            resident.loras.drop(sha256)
        log.info("loras_dropped", model=model, loras=[sha256[:10] for sha256 in sha256s])

    async def _evict_one(self, newcomer: str) -> None:
        victim = next((name for name, each in self._residents.items() if self._evictable(each)), None)
        if victim is None:
            held = ", ".join(self._residents)
            raise OutOfDeviceMemory(f"There is no room for {newcomer!r} beside what is in use or pinned ({held}).")
        await self._evict(victim, f"room for {newcomer}")

    def _is_full(self) -> bool:
        return self._max_resident is not None and len(self._residents) >= self._max_resident

    def _is_above(self, needed_bytes: int, budget_bytes: int | None) -> bool:
        used_bytes = sum(each.all_bytes for each in self._residents.values())
        return budget_bytes is not None and used_bytes + needed_bytes > budget_bytes

    def _evictable(self, resident: Resident) -> bool:
        return not resident.users and not resident.pinned

    async def _evict(self, model: str, why: str) -> None:
        await self._loader.unload(model)
        self._residents.pop(model, None)
        log.info("model_unloaded", model=model, reason=why)

    def _note(self, model: str, loss: WorkerLost) -> None:
        if self._noted.get(model) is loss:
            return
        self._noted[model] = loss
        self._losses[model] = self._losses.get(model, 0) + 1
        if self._losses[model] >= QUARANTINED_AFTER:
            self._quarantined[model] = Quarantined(model, loss.message)
            log.error("model_quarantined", model=model, reason=loss.message)

    def _remembered(self, model: str, order: LoadOrder | None) -> AquatintError | None:
        """What speaks against a load. order: how it would be loaded; another way may well work where memory ran out."""
        if model in self._quarantined:
            return self._quarantined[model]
        failure = self._failures.get(model)
        if failure is not None and self._clock() - failure.at_s >= FAILURE_MEMORY_S:
            del self._failures[model]
            return None
        if failure is None or (order is not None and not order.offload.within(failure.order.offload)):
            return None
        return failure.error

    def _load_ended(self, model: str, load: asyncio.Task[None]) -> None:
        self._loads.pop(model, None)
        # Read, for nobody may be waiting any more; asyncio would complain of an error never retrieved.
        if not load.cancelled() and load.exception() is not None:
            log.warning("load_failed", model=model, reason=str(load.exception()))


def _takes_more(resident: Resident, order: LoadOrder) -> bool:
    """Whether a pipeline must be loaded anew because it takes more of the device than ordered now."""
    return not order.offload.within(resident.order.offload)
