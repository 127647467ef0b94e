"""DBOS as this project uses it: workflows named by job, checkpoints as JSON, one queue for all routers.

All of `Execution` but the workflows themselves blocks, and is called from threads. See the package for why.
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any

from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, SetWorkflowID

from common.catalog import Catalog, JobLeft, JobState, load_or_create_secret_key, open_asset_store
from common.catalog.database import parse_url, sqlite_path
from common.errors import Unavailable
from common.logs import get_logger
from router.jobs.kinds import KINDS
from router.jobs.work import Do, Told, Tools, Work, carry, patiently
from router.node_client import NodeClient
from router.settings import RouterSettings

log = get_logger(__name__)

QUEUE = "jobs"
WORKFLOW = "job"
VERSION = "jobs-1"
"""Of the order of steps of all kinds. By itself DBOS takes a hash of the source, and each edit would strand open jobs."""
AT_ONCE = 2
"""Jobs that one router works on."""
POLL_S = 0.5
CONNECTIONS = 5
STOP_TIMEOUT_S = 10.0
FORGOTTEN_AT_ONCE = 1000
MOST_EXECUTIONS = 20
"""A job that kills whichever router begins with it must not go round for ever."""
LOST = ("SUCCESS", "ERROR")
"""States that DBOS leads no workflow out of."""


class NotLaunched(Unavailable):
    """The database of checkpoints cannot be used."""

    code = "checkpoints_unavailable"


class Execution:
    """DBOS, launched. No two in one process at a time."""

    def __init__(self, settings: RouterSettings) -> None:
        """Raises: NotLaunched."""
        self.owner = f"router_{secrets.token_hex(16)}"
        self.carried: set[str] = set()
        """The jobs that are worked on here."""
        self._settings = settings
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self._tools: asyncio.Future[Tools] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stack = AsyncExitStack()
        # With a handler already there it keeps its own, and its own form, to itself.
        logging.getLogger("dbos").addHandler(logging.NullHandler())
        try:
            DBOS(config=self._config())
            self._workflow = DBOS.workflow(name=WORKFLOW, max_recovery_attempts=None)(self._made_workflow())
            DBOS.launch()
            DBOS.register_queue(QUEUE, worker_concurrency=AT_ONCE, polling_interval_sec=POLL_S, on_conflict="always_update")
        except Exception as error:
            _destroy()
            raise NotLaunched(f"The checkpoints of jobs cannot be used: {type(error).__name__}.") from error

    def _config(self) -> DBOSConfig:
        return {
            "name": "aquatint",
            "system_database_url": checkpoints_url(self._settings.catalog_url),
            "application_version": VERSION,
            "executor_id": self.owner,
            "serializer": DBOSPortableJSONSerializer(),
            "sys_db_pool_size": CONNECTIONS,
            "log_level": "ERROR",
        }

    def put_to_work(self, job_id: str) -> bool:
        """Have some router begin with a job that nobody works on, or go on with it. False: that is not possible any more."""
        status = DBOS.get_workflow_status(job_id)
        if status is None:
            with SetWorkflowID(job_id):
                DBOS.enqueue_workflow(QUEUE, self._workflow, job_id)
        elif status.status in LOST:
            return False
        elif status.status != "ENQUEUED":
            DBOS.resume_workflow(job_id, queue_name=QUEUE)
        return True

    def forget_ended(self) -> None:
        """Remove the checkpoints of jobs that have ended."""
        ended = DBOS.list_workflows(status=list(LOST), load_input=False, load_output=False, limit=FORGOTTEN_AT_ONCE)
        DBOS.delete_workflows([each.workflow_id for each in ended])

    def _made_workflow(self) -> Callable[[str], Awaitable[None]]:
        # A function, as DBOS notes on it what it knows of it.
        async def work(job_id: str) -> None:
            task = asyncio.current_task()
            assert task is not None
            if self._stopping:
                raise asyncio.CancelledError
            self._tasks.add(task)
            try:
                await self._carry(job_id)
            finally:
                self._tasks.discard(task)

        return work

    def stop(self) -> None:
        """Leave all jobs where they are, for others to go on with."""
        self._stopping = True
        if self._loop is not None:
            with suppress(TimeoutError):
                asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(STOP_TIMEOUT_S)
        _destroy()

    async def _close(self) -> None:
        for task in (tasks := list(self._tasks)):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._stack.aclose()

    async def _carry(self, job_id: str) -> None:
        tools = await self._opened()
        job = await patiently(lambda: tools.catalog.jobs.begin(job_id, self.owner, lease_s=tools.lease_s))
        if job is None:
            return
        kind = KINDS.get(job.kind)
        work = Work(job, tools, _checkpoint, unit=kind.unit if kind is not None else "")
        self.carried.add(job_id)
        try:
            if kind is None:
                await work.end(JobState.FAILED, ("unknown_kind", f"This router knows no jobs of the kind {job.kind!r}."))
            elif job.executions > MOST_EXECUTIONS:
                await work.end(
                    JobState.FAILED, ("begun_too_often", f"{MOST_EXECUTIONS} routers have died while they were at it.")
                )
            else:
                await carry(work, kind.do)
        except JobLeft as error:
            log.warning("job_left", job=job_id, why=error.message)
        finally:
            self.carried.discard(job_id)

    async def _opened(self) -> Tools:
        """What jobs work with, in DBOS's event loop. Raises nothing: without a catalog jobs wait."""
        if self._tools is None:
            self._loop = asyncio.get_running_loop()
            self._tools = asyncio.ensure_future(patiently(self._open, patience_s=float("inf")))
        return await asyncio.shield(self._tools)

    async def _open(self) -> Tools:
        settings = self._settings
        secret_key = load_or_create_secret_key(settings.secret_key_path)
        catalog = await Catalog.open(settings.catalog_url, secret_key=secret_key)
        self._stack.push_async_callback(catalog.close)
        assets = open_asset_store(settings.asset_store_url)
        self._stack.push_async_callback(assets.close)
        own = settings.router
        client = NodeClient(connect_timeout_s=own.connect_timeout_s, probe_timeout_s=own.probe_timeout_s)
        self._stack.push_async_callback(client.aclose)
        return Tools(settings, catalog, assets, client)


async def _checkpoint(name: str, do: Do) -> Told:
    return await DBOS.run_step_async({"name": name}, do)


def _destroy() -> None:
    DBOS.destroy(destroy_registry=True)


def checkpoints_url(catalog_url: str) -> str:
    """The database of checkpoints that goes with a catalog: the same PostgreSQL, in a schema of its own, or a file beside
    the catalog's, as two programs that write one SQLite file keep each other waiting."""
    url = parse_url(catalog_url)
    path = sqlite_path(url)
    if path is not None:
        return f"sqlite:///{path.with_suffix('.jobs.db')}"
    # What asyncpg calls ssl is libpq's sslmode.
    query = {"sslmode" if name == "ssl" else name: value for name, value in url.query.items()}
    return url.set(drivername="postgresql+psycopg", query=query).render_as_string(hide_password=False)
