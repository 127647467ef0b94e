"""A job as the code of its kind sees it: steps whose results are kept, how far it is, and its end."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from common.catalog import AssetStore, Catalog, JobLeft, JobRecord, JobState
from common.errors import AquatintError, StorageFull, Unavailable
from common.logs import get_logger
from router.node_client import NodeClient
from router.settings import RouterSettings

log = get_logger(__name__)
T = TypeVar("T")

Told = dict[str, Any]
"""What a step gave, as JSON."""
Do = Callable[[], Coroutine[Any, Any, Told]]
Checkpoint = Callable[[str, Do], Awaitable[Told]]
"""Does a step of this name unless it was done before, and gives what it gave then."""

AGAIN_AFTER_S = (1, 2, 5, 10, 15)
"""Waits between tries of what the catalog or a store did not let happen; the last for all that follow."""
PATIENCE_S = 600.0
"""After which a step has failed."""


class Stopped(Exception):
    """The job was cancelled."""


class StepFailed(Exception):
    """A step has failed for good."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Tools:
    """What jobs work with: their own, as they run in an event loop of their own."""

    settings: RouterSettings
    catalog: Catalog
    assets: AssetStore
    client: NodeClient

    @property
    def lease_s(self) -> float:
        """How long a router holds a job after its last sign of life."""
        return self.settings.router.job_lease_s


@dataclass(slots=True)
class Work:
    """One execution of a job. `result`, `done` and `total` may depend on nothing but params and what steps gave: so they are
    the same in each."""

    job: JobRecord
    tools: Tools
    checkpoint: Checkpoint
    unit: str
    result: dict[str, Any] = field(default_factory=dict)
    """What has come of it so far."""
    done: int = 0
    total: int | None = None

    async def step(self, name: str, do: Do) -> Told:
        """Do something that may be done twice, and keep what it gave. Raises: Stopped, StepFailed."""
        told = await self.checkpoint(name, partial(self._once, do))
        if told["outcome"] == "stopped":
            raise Stopped
        if told["outcome"] == "failed":
            raise StepFailed(told["code"], told["message"])
        given: Told = told["given"]
        return given

    def count(self, **more: int) -> None:
        """Add to the result."""
        for name, number in more.items():
            self.result[name] = self.result.get(name, 0) + number

    async def tell(self, done: int, total: int | None) -> None:
        """Say within a long step how far it is. Raises: Stopped: it is to end."""
        if not await self._advance(done, total):
            raise Stopped

    async def _advance(self, done: int, total: int | None) -> bool:
        job = self.job
        return await self.tools.catalog.jobs.advance(job.id, job.executions, done=done, total=total, unit=self.unit)

    async def _once(self, do: Do) -> Told:
        # What goes wrong is part of what is kept: an execution after this one takes the same turn.
        try:
            if not await patiently(partial(self._advance, self.done, self.total)):
                return {"outcome": "stopped"}
            return {"outcome": "done", "given": await patiently(do)}
        except Stopped:
            return {"outcome": "stopped"}
        except JobLeft:
            raise
        except AquatintError as error:
            return {"outcome": "failed", "code": error.code or "internal_error", "message": error.message}
        except Exception as error:
            log.error("job_step_failed", job=self.job.id, kind=self.job.kind, exc_info=error)
            return {"outcome": "failed", "code": "internal_error", "message": f"{type(error).__name__}; the log tells more."}

    async def end(self, state: JobState, error: tuple[str, str] | None = None) -> None:
        """Write down what came of it. Raises: JobLeft."""
        job, jobs = self.job, self.tools.catalog.jobs
        summary = {"done": self.done, "total": self.total, "unit": self.unit, "result": self.result}

        async def write() -> Told:
            try:
                # Without end: a job that has ended and does not say so would be begun again for nothing.
                await patiently(
                    lambda: jobs.finish(job.id, job.executions, state, summary, error=error), patience_s=float("inf")
                )
            except JobLeft:
                # Written by the try before this one, whose answer was lost.
                if (await jobs.get(job.id)).summary is None:
                    raise
            return {}

        await self.checkpoint("end", write)


async def carry(work: Work, do: Callable[[Work], Awaitable[None]]) -> None:
    """Do a job's work from wherever it stands, and write its end."""
    error: tuple[str, str] | None = None
    try:
        await do(work)
        state = JobState.SUCCEEDED
    except Stopped:
        state = JobState.CANCELLED
    except StepFailed as failed:
        state, error = JobState.FAILED, (failed.code, failed.message)
    except AquatintError as failed:
        state, error = JobState.FAILED, (failed.code or "internal_error", failed.message)
    await work.end(state, error)
    log.info("job_ended", job=work.job.id, kind=work.job.kind, state=state, result=work.result)


async def patiently(do: Callable[[], Awaitable[T]], *, patience_s: float = PATIENCE_S) -> T:
    """Do something, again while the catalog or a store cannot be used for now. Raises: what it raises."""
    loop = asyncio.get_running_loop()
    until_s, tries = loop.time() + patience_s, 0
    while True:
        try:
            return await do()
        except StorageFull:
            raise
        except Unavailable as error:
            if loop.time() >= until_s:
                raise
            log.warning("job_waits", why=error.message)
        await asyncio.sleep(AGAIN_AFTER_S[min(tries, len(AGAIN_AFTER_S) - 1)])
        tries += 1
