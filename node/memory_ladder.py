"""What is done when memory runs out under a load or a run, one means after another, each dearer than the one before.

    1. make the pictures of a pass in halves, down to one at a time      in the engine, where runs share passes: it
                                                                         changes no picture, so it comes first
    2. give the caches back, and have the autoencoder work in tiles      in the engine (`vae_tiled`)
    3. drop the LoRAs that the run does not use, and unload every other model
    4. keep more of the weights in main memory (`offload.py`)
    5. tell the router, with the largest picture that would fit, and remember it

What helped is remembered as well: the next picture as large begins there. Whatever happens, the next request finds the
device as the last good one left it.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from common.errors import OutOfDeviceMemory
from common.images_api import Size
from common.logs import get_logger
from common.node_api import DeviceStatus, MemoryLimit
from node.beside import Beside
from node.choice import Choice
from node.engines.base import LoadOrder
from node.memory_limits import MemoryLimits, Way
from node.models import Model
from node.offload import Offload, OffloadChoice, OffloadSetting, choose_offload, possible
from node.residency import Residency
from node.worker.handle import Product

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Asked:
    """What decides whether a run fits: the model, what is asked of it, how large, and what it has beside the model."""

    model: Model
    task: str
    size: Size
    """Of the picture the client gets."""
    beside: Beside = field(default_factory=Beside)


@dataclass(frozen=True, slots=True)
class Plan:
    """How a model is loaded, and why so."""

    order: LoadOrder
    choice: Choice
    offload: OffloadChoice


@dataclass(frozen=True, slots=True)
class Fitted:
    """A run that was made, and how the model was loaded for it."""

    product: Product
    plan: Plan


class MemoryLadder:
    """Has runs made on loaded models."""

    def __init__(self, residency: Residency, limits: MemoryLimits, *, dtype: str, offload: OffloadSetting = "auto") -> None:
        """dtype and offload: the settings; `auto` leaves the first to each model's profile, the second to what fits."""
        self._residency = residency
        self._limits = limits
        self.dtype = dtype
        self._offload: OffloadSetting = offload

    def plan(self, model: Model, device: DeviceStatus, at_least: Offload = Offload.NONE) -> Plan:
        """How a model would be loaded. at_least: what memory ran out with less of."""
        budget_bytes = self._residency.budget_bytes()
        choice = model.choice(device.kind, self.dtype, budget_bytes)
        order = model.load_order(device.kind, self.dtype, budget_bytes)
        offload = choose_offload(
            choice.checkpoint,
            dtype=order.dtype,
            device=device.kind,
            budget_bytes=budget_bytes,
            wanted=self._offload,
            at_least=at_least,
        )
        return Plan(replace(order, offload=offload.mode), choice, offload)

    def check(self, asked: Asked, device: DeviceStatus) -> None:
        """Raises: OutOfDeviceMemory: memory ran out before for as large a picture, with as much beside the model or less."""
        limit = self._limits.of(self._way(asked, device)).get(asked.task)
        if limit is not None and asked.size.pixels >= limit.too_large_px:
            raise _told(asked, limit)

    def limits(self, model: Model, device: DeviceStatus) -> dict[str, MemoryLimit]:
        """What is known of a model with nothing beside it, by task."""
        return self._limits.of(_way(self.plan(model, device), device, Beside()))

    def forget(self, model: Model) -> None:
        """Try everything again: an operator wants it."""
        self._limits.forget(model.name)

    async def make(self, asked: Asked, device: DeviceStatus, attempt: Callable[[], Awaitable[Product]]) -> Fitted:
        """Have the model on the device and `attempt` a run on it, again where there is a means left.

        Raises: OutOfDeviceMemory: there is none; whatever `attempt` and Residency.hold raise.
        """
        way, pixels = self._way(asked, device), asked.size.pixels
        plan = self.plan(asked.model, device, self._limits.offload(way, asked.task, pixels))
        while True:
            climb = _Climb(attempt)
            try:
                async with self._residency.hold(plan.order, asked.beside):
                    product = await self._alone_if_need_be(asked, climb)
                self._limits.made(way, asked.task, pixels, plan.offload.mode)
                return Fitted(product, plan)
            except OutOfDeviceMemory:
                more = self._more(plan, device)
                if more is None and not climb.began:
                    raise
                if more is None:
                    limit = self._limits.failed(way, asked.task, pixels)
                    log.warning("memory_limit", model=asked.model.name, task=asked.task, **limit.model_dump())
                    raise _told(asked, limit) from None
                plan = self.plan(asked.model, device, more)
                log.warning("out_of_memory_offloaded", model=asked.model.name, offload=plan.offload.mode.value)

    def _more(self, plan: Plan, device: DeviceStatus) -> Offload | None:
        """The next mode that keeps less on the device; None when there is none."""
        modes = possible(plan.choice.checkpoint, device=device.kind, wanted=self._offload)
        return next((mode for mode in modes if not mode.within(plan.offload.mode)), None)

    async def _alone_if_need_be(self, asked: Asked, attempt: Callable[[], Awaitable[Product]]) -> Product:
        try:
            return await attempt()
        except OutOfDeviceMemory:
            if not await self._residency.unload_others(asked.model.name, asked.beside.loras):
                raise
        log.warning("out_of_memory_retried", model=asked.model.name)
        return await attempt()

    def _way(self, asked: Asked, device: DeviceStatus) -> Way:
        return _way(self.plan(asked.model, device), device, asked.beside)


class _Climb:
    """An attempt that knows whether it began: a load for which memory runs out says nothing of sizes."""

    def __init__(self, attempt: Callable[[], Awaitable[Product]]) -> None:
        self._attempt = attempt
        self.began = False

    async def __call__(self) -> Product:
        self.began = True
        return await self._attempt()


def _way(plan: Plan, device: DeviceStatus, beside: Beside) -> Way:
    checkpoint = plan.choice.checkpoint
    how = (device.name, device.memory_total_bytes, checkpoint.engine.value, checkpoint.stored_bytes, plan.order.dtype)
    return Way(plan.order.model, " ".join(map(str, how)), tuple(sorted(beside.names)))


def _told(asked: Asked, limit: MemoryLimit) -> OutOfDeviceMemory:
    fits = asked.size.within(limit.fits_px, asked.model.profile.size_step_px)
    return OutOfDeviceMemory(
        f"The memory of this node's device does not suffice for a {asked.task} of {asked.size} by {asked.model.name!r}; "
        f"going by what was seen, {fits} should fit.",
        param="size",
    )
