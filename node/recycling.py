"""Replaces a worker that holds memory it has no use for, between runs: libraries leak, and a day has many model switches.

What it holds is told every two seconds. Where that is more than it began with, its weights and the operator's allowance,
the next run waits while the worker gives back what it can and is asked again: what a run needs for a while is no leak.
"""

import asyncio
import time
from collections.abc import Callable

from common.errors import AquatintError
from common.logs import get_logger
from node.residency import Residency
from node.scheduler import Scheduler
from node.worker.handle import Worker
from node.worker.orders import Memory

log = get_logger(__name__)

LOOK_EVERY_S = 5.0
TRUSTED_S = 60.0
"""How long a worker that was asked and holds no more than it may is not asked again."""


class Recycling:
    """What watches one worker."""

    def __init__(
        self,
        worker: Worker,
        residency: Residency,
        scheduler: Scheduler,
        *,
        allowed_bytes: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """allowed_bytes: what an idle worker may hold beyond what it began with and its weights; 0 for no bound."""
        self._worker = worker
        self._residency = residency
        self._scheduler = scheduler
        self._allowed_bytes = allowed_bytes
        self._clock = clock
        self._asked_at_s = -TRUSTED_S

    async def watch(self) -> None:
        """Look now and then, for ever."""
        while self._allowed_bytes:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await self.look()
            except AquatintError as error:
                log.warning("worker_not_asked", reason=error.message)

    async def look(self) -> bool:
        """Replace the worker if it holds too much. Waits until no run is at work only where it seems to.

        Raises: WorkerLost, Unavailable: it ended meanwhile, or what was pinned cannot be loaded into the new one.
        """
        told = self._worker.memory
        if told is None or self._clock() - self._asked_at_s < TRUSTED_S or not self._excess(told):
            return False
        async with self._scheduler.between_runs():
            excess = self._excess(await self._worker.measure())
            self._asked_at_s = self._clock()
            if excess is None:
                return False
            pinned = await self._residency.leave_worker(lambda: self._worker.replace(excess))
        for order in pinned:
            await self._residency.ensure(order, pin=True)
        return True

    def _excess(self, memory: Memory) -> str | None:
        """What is too much, in words; None where nothing is."""
        device = self._worker.device
        if device is None or self._worker.first_memory is None:
            return None
        weights_bytes = self._residency.main_memory_bytes(device.kind)
        main_bytes = memory.main_bytes - self._worker.first_memory.main_bytes - weights_bytes
        if main_bytes > self._allowed_bytes:
            return f"it holds {main_bytes:,} bytes of main memory beyond its start and its weights"
        # With models loaded it is not told from what they keep for their runs.
        if memory.device_bytes > self._allowed_bytes and not self._residency.residents:
            return f"it holds {memory.device_bytes:,} bytes of the device with nothing loaded"
        return None
