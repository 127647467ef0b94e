"""What is done when memory runs out under a run, one means after another, each dearer than the one before.

    1. give the caches back, and have the autoencoder work in tiles      in the engine (`vae_tiled`)
    2. make the pictures of a pass in halves, down to one at a time      in the engine, where runs share passes
    3. unload every other model
    4. tell the router, with the largest picture that would fit, and remember it

Whatever happens the next request finds the device as the last good one left it.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from common.errors import OutOfDeviceMemory
from common.images_api import Size
from common.logs import get_logger
from common.node_api import DeviceStatus, MemoryLimit
from node.choice import Choice
from node.memory_limits import MemoryLimits, Way
from node.models import Model
from node.residency import Residency
from node.worker.handle import Product

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Asked:
    """What decides whether a run fits: the model, what is asked of it, and how large."""

    model: Model
    task: str
    size: Size
    """Of the picture the client gets."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A run that was made, and which of the model's files made it."""

    product: Product
    choice: Choice


class MemoryLadder:
    """Has runs made on loaded models."""

    def __init__(self, residency: Residency, limits: MemoryLimits, *, dtype: str) -> None:
        """dtype: the setting; `auto` leaves it to each model's profile."""
        self._residency = residency
        self._limits = limits
        self.dtype = dtype

    def check(self, asked: Asked, device: DeviceStatus | None) -> None:
        """Raises: OutOfDeviceMemory: memory ran out for as large a picture before. device: None while it is not known."""
        if device is None:
            return
        limit = self.limits(asked.model, device).get(asked.task)
        if limit is not None and asked.size.pixels >= limit.too_large_px:
            raise _told(asked, limit)

    def choice(self, model: Model, device: DeviceStatus) -> Choice:
        """Which file of a model would be run on a device."""
        return model.choice(device.kind, self.dtype, self._residency.budget_bytes())

    def limits(self, model: Model, device: DeviceStatus) -> dict[str, MemoryLimit]:
        """What is known of a model, by task."""
        return self._limits.of(self._way(model, device))

    def forget(self, model: Model) -> None:
        """Try everything again: an operator wants it."""
        self._limits.forget(model.name)

    async def make(
        self,
        asked: Asked,
        device: DeviceStatus,
        attempt: Callable[[], Awaitable[Product]],
        beside: Mapping[str, int] = MappingProxyType({}),
    ) -> Fitted:
        """Have the model on the device and `attempt` a run on it, again where there is a means left.

        beside: bytes of what the run loads with the model, by name.

        Raises: OutOfDeviceMemory: there is none; whatever `attempt` and Residency.hold raise.
        """
        model, way, choice = asked.model, self._way(asked.model, device), self.choice(asked.model, device)
        order = model.load_order(device.kind, self.dtype, self._residency.budget_bytes())
        async with self._residency.hold(order, beside):
            try:
                product = await self._alone_if_need_be(model, attempt)
            except OutOfDeviceMemory:
                limit = self._limits.failed(way, asked.task, asked.size.pixels)
                log.warning("memory_limit", model=model.name, task=asked.task, **limit.model_dump())
                raise _told(asked, limit) from None
        self._limits.made(way, asked.task, asked.size.pixels)
        return Fitted(product, choice)

    async def _alone_if_need_be(self, model: Model, attempt: Callable[[], Awaitable[Product]]) -> Product:
        try:
            return await attempt()
        except OutOfDeviceMemory:
            if not await self._residency.unload_others(model.name):
                raise
        log.warning("out_of_memory_retried", model=model.name)
        return await attempt()

    def _way(self, model: Model, device: DeviceStatus) -> Way:
        checkpoint = self.choice(model, device).checkpoint
        how = (device.name, device.memory_total_bytes, checkpoint.engine.value, checkpoint.stored_bytes)
        return Way(model.name, " ".join(map(str, (*how, model.dtype(device.kind, self.dtype)))))


def _told(asked: Asked, limit: MemoryLimit) -> OutOfDeviceMemory:
    fits = asked.size.within(limit.fits_px, asked.model.profile.size_step_px)
    return OutOfDeviceMemory(
        f"The memory of this node's device does not suffice for a {asked.task} of {asked.size} by {asked.model.name!r}; "
        f"going by what was seen, {fits} should fit.",
        param="size",
    )
