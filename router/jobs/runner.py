"""Takes up jobs, keeps those that are held, and puts down those that are due. One a router, begun with it."""

import asyncio
import threading
import time
from typing import TYPE_CHECKING

from common.catalog import Catalog, NewJob
from common.clock import clock
from common.errors import CatalogUnavailable, Conflict, Unavailable
from common.logs import get_logger
from common.web.background import set_within
from router.jobs.schedules import Schedule, period_of
from router.settings import RouterSettings

if TYPE_CHECKING:
    from router.jobs.execution import Execution

log = get_logger(__name__)

LOOK_EVERY_S = 1.0
RENEWALS = 4
"""Signs of life in the time after which a job without one is taken up by others."""
TIDY_EVERY_S = 3600.0
TAKEN_AT_ONCE = 8

_in_use = threading.Lock()
"""Held while DBOS runs in this process: it is one."""


class JobRunner:
    """See the module. Jobs go on, in an event loop of their own, until `run` is cancelled."""

    def __init__(self, catalog: Catalog, settings: RouterSettings, schedules: list[Schedule]) -> None:
        self._catalog = catalog
        self._settings = settings
        self._schedules = schedules
        self._last_period: dict[str, str] = {}
        self._execution: Execution | None = None
        self._wake = asyncio.Event()
        self._retired = asyncio.Event()
        self._renewed_s = self._tidied_s = time.monotonic()

    def retire(self) -> None:
        """The process is told to stop: take up no more, and let those go who watch."""
        self._retired.set()

    def look(self) -> None:
        """There is a new job."""
        self._wake.set()

    async def until_retired(self, within_s: float) -> bool:
        """Whether the process was told to stop, now or within that time."""
        return await set_within(self._retired, within_s)

    async def run(self) -> None:
        """Take up jobs until cancelled; then leave those that are worked on to others."""
        try:
            while True:
                try:
                    # First: a process that had no time for long must not take its own jobs for those of a dead one.
                    await self._keep()
                    await self._put_down_what_is_due()
                    if not self._retired.is_set():
                        await self._take_up()
                except Unavailable as error:
                    log.warning("jobs_not_looked_for", why=error.message)
                self._wake.clear()
                await set_within(self._wake, min(LOOK_EVERY_S, self._lease_s / RENEWALS))
        finally:
            await asyncio.shield(self._stop())

    @property
    def _lease_s(self) -> float:
        return self._settings.router.job_lease_s

    async def _take_up(self) -> None:
        if not await self._catalog.jobs.waiting():
            return
        if self._execution is None and not await self._launched():
            return
        execution = self._execution
        assert execution is not None
        for job in await self._catalog.jobs.take_up(limit=TAKEN_AT_ONCE, lease_s=self._lease_s):
            if not await asyncio.to_thread(execution.put_to_work, job.id):
                await self._catalog.jobs.give_up(
                    job.id,
                    code="checkpoints_lost",
                    message="What was done of it and what was written down do not agree, as after a restored backup.",
                )

    async def _launched(self) -> bool:
        """Start DBOS. False: another router of this process has it. Raises: NotLaunched."""
        if not _in_use.acquire(blocking=False):
            return False
        try:
            self._execution = await asyncio.to_thread(_launch, self._settings)
        except BaseException:
            _in_use.release()
            raise
        log.info("jobs_started", owner=self._execution.owner)
        return True

    async def _keep(self) -> None:
        execution, now_s = self._execution, time.monotonic()
        if execution is None:
            return
        if now_s - self._renewed_s >= self._lease_s / RENEWALS:
            self._renewed_s = now_s
            await self._catalog.jobs.renew(execution.owner, list(execution.carried), lease_s=self._lease_s)
        if now_s - self._tidied_s >= TIDY_EVERY_S:
            self._tidied_s = now_s
            await asyncio.to_thread(execution.forget_ended)

    async def _put_down_what_is_due(self) -> None:
        for schedule in self._schedules:
            period = period_of(schedule, clock.now_s())
            if self._last_period.get(schedule.kind) == period:
                continue
            new = NewJob(kind=schedule.kind, params=schedule.params, only_one=schedule.only_one, period=period)
            try:
                job = await self._catalog.jobs.add(new)
                log.info("job_due", job=job.id, kind=job.kind)
            except Conflict:
                # Another router was first, or that of the last turn is not done yet.
                log.debug("job_not_due", kind=schedule.kind)
            self._last_period[schedule.kind] = period

    async def _stop(self) -> None:
        execution = self._execution
        if execution is None:
            return
        await asyncio.to_thread(execution.stop)
        _in_use.release()
        try:
            await self._catalog.jobs.put_back(execution.owner)
        except CatalogUnavailable as error:
            log.warning("jobs_not_put_back", why=error.message)


def _launch(settings: RouterSettings) -> "Execution":
    # Its import takes as long as all others of the router together.
    from router.jobs.execution import Execution

    return Execution(settings)
