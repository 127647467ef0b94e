"""Async runs (`Prefer: respond-async`): accepted with all they need, carried by whichever router is there.

An async run is in the catalog before its client hears of it. The router that accepted it carries it first; when that one
stops or dies, its lease ends and another takes the run on; one that is told to stop takes on no more, and what it still
accepts is anyone's at once. What keeps a run from a node for now (none is there, the queue
is full, the catalog is away) does not end it: it is put back, until it is older than it may become.
"""

import asyncio
import secrets
import time

from common.catalog import AssetStore, AsyncRecord, Catalog, NewAsync, RunRecord, RunStatus
from common.clock import utc_now
from common.errors import AquatintError, CatalogUnavailable, TooManyRequests
from common.images_api import ImageRequest, ResponseFormat, Task, UploadLimits, read_form_request
from common.images_api.uploads import Attached
from common.logs import get_logger
from common.web.background import ended, set_within
from router.accepting import Acceptance, Sender
from router.carried import Carried
from router.relay import Accepted, may_pass, row_of
from router.splitting import Splitter

log = get_logger(__name__)

LEASE_S = 30.0
RENEW_EVERY_S = 5.0
LOOK_EVERY_S = 1.0
PUT_BACK_FOR_S = 5.0
MOST_ATTEMPTS = 10
"""A run that breaks whatever node has it must not go round for a day."""
OPEN = (RunStatus.QUEUED, RunStatus.RUNNING)


class AsyncCarrier:
    """Accepts and carries async runs. One a router."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        assets: AssetStore,
        dispatcher: Splitter,
        acceptance: Acceptance,
        carried: Carried,
        limits: UploadLimits,
        at_once: int,
        most_open: int,
        oldest_s: float,
    ) -> None:
        """at_once: runs this router carries; most_open: runs all routers keep; oldest_s: how long one may wait."""
        self._catalog = catalog
        self._assets = assets
        self._dispatcher = dispatcher
        self._acceptance = acceptance
        self._carried = carried
        self._limits = limits
        self._at_once = at_once
        self._most_open = most_open
        self._oldest_s = oldest_s
        self._owner = f"router_{secrets.token_hex(16)}"
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._retired = False

    def retire(self) -> None:
        """The process is told to stop: take on no more runs."""
        self._retired = True

    async def accept(self, accepted: Accepted, webhook_url: str | None) -> str:
        """Record an async run; its client may be told of it then.

        Returns: its id; that of an earlier run where the idempotency key names one.
        Raises: TooManyRequests, KeyReused, KeyInFlight, StorageFull, CatalogUnavailable: nothing was accepted.
        """
        uploads = accepted.request.uploads
        new = NewAsync(
            owner=self._owner,
            # Too many already, or on our way out: whoever has a hand free takes it.
            lease_s=LEASE_S if len(self._tasks) < self._at_once and not self._retired else 0,
            public_url=accepted.public_url,
            inputs=tuple([(purpose, await self._assets.put(upload.content)) for purpose, upload in uploads]),
            webhook_url=webhook_url,
            most=self._most_open,
        )
        earlier = await self._catalog.runs.open(row_of(accepted), accepted.claim, new)
        if earlier is not None:
            return earlier.run_id
        if new.lease_s:
            self._begin(accepted.run_id)
        return accepted.run_id

    async def run(self) -> None:
        """Take on runs and prolong leases, until cancelled; then put back what is carried."""
        renewed_s = asyncio.get_running_loop().time()
        try:
            while True:
                try:
                    await self._take_on()
                    if asyncio.get_running_loop().time() - renewed_s >= RENEW_EVERY_S:
                        renewed_s = asyncio.get_running_loop().time()
                        await self._renew()
                except CatalogUnavailable as error:
                    log.warning("async_runs_not_looked_for", why=error.message)
                self._wake.clear()
                await set_within(self._wake, LOOK_EVERY_S)
        finally:
            await asyncio.gather(*(ended(task) for task in list(self._tasks.values())))

    async def _take_on(self) -> None:
        free = 0 if self._retired else self._at_once - len(self._tasks)
        if free > 0:
            for run_id in await self._catalog.async_runs.take(self._owner, limit=free, lease_s=LEASE_S):
                self._begin(run_id)

    async def _renew(self) -> None:
        held = list(self._tasks)
        if not held:
            return
        ours = await self._catalog.async_runs.renew(self._owner, held, lease_s=LEASE_S)
        for run_id in held:
            if run_id not in ours and run_id in self._tasks:
                # It was cancelled at another router, or we were asleep for so long that another took it on.
                self._tasks[run_id].cancel()

    def _begin(self, run_id: str) -> None:
        task = asyncio.create_task(self._carry(run_id), name=f"async {run_id}")
        self._tasks[run_id] = task

        def gone(_: asyncio.Task[None]) -> None:
            self._tasks.pop(run_id, None)
            self._wake.set()

        task.add_done_callback(gone)

    async def _carry(self, run_id: str) -> None:
        try:
            put_back_for_s = await self._carried.carry(run_id, self._through(run_id))
        except asyncio.CancelledError:
            await asyncio.shield(self._give_up(run_id, 0))
            raise
        except AquatintError as error:
            log.info("async_run_failed", run_id=run_id, code=error.code)
            put_back_for_s = None
        if put_back_for_s is not None:
            await self._give_up(run_id, put_back_for_s)
            return
        try:
            await self._catalog.async_runs.ended(run_id)
        except CatalogUnavailable as error:
            # The lease ends by itself; whoever takes the run on sees that it has ended.
            log.warning("async_run_not_closed", run_id=run_id, why=error.message)

    async def _give_up(self, run_id: str, for_s: float) -> None:
        try:
            await self._catalog.async_runs.put_back(self._owner, run_id, for_s=for_s)
        except CatalogUnavailable as error:
            log.warning("async_run_not_put_back", run_id=run_id, why=error.message)

    async def _through(self, run_id: str) -> float | None:
        """Dispatch a run to its end. Returns: None when it has ended, else for how long it is put back.

        Raises: any AquatintError: it has ended so, and its row says the same.
        """
        run, record = await self._catalog.runs.get(run_id), await self._catalog.async_runs.get(run_id)
        if run.status not in OPEN or record is None:
            return None
        age_s = (utc_now() - run.created_at).total_seconds()
        lasting = age_s < self._oldest_s and run.current_attempt < MOST_ATTEMPTS
        try:
            accepted = await self._again(run, record, age_s)
            # Made in parts once at most: which parts of an earlier try still run elsewhere, nobody knows.
            again = accepted._replace(lasting=lasting, recorded=True, whole=bool(run.parts))
            reply = await self._dispatcher.run(again)
            async for _ in reply.body:
                # A few hundred bytes: links, whatever the client wants in the end.
                continue
        except AquatintError as error:
            if lasting and (may_pass(error) or isinstance(error, TooManyRequests)):
                return PUT_BACK_FOR_S
            await self._catalog.runs.fail(run_id, code=error.code or "failed", message=error.message)
            raise
        return None

    async def _again(self, run: RunRecord, record: AsyncRecord, age_s: float) -> Accepted:
        """What was accepted, out of the catalog and the asset store."""
        asked = await self._request(run, record)
        sender = Sender(
            run_id=run.id,
            request_id=run.request_id,
            requested_model=run.requested_model,
            key_id=run.key_id,
            public_url=record.public_url,
            # Its place among those of its key, whoever accepted it, and however often it was put back.
            arrived_s=time.monotonic() - age_s,
        )
        # The pictures are stored; their bytes need not come by here.
        return await self._acceptance.accept(asked._replace(response_format=ResponseFormat.URL), sender)

    async def _request(self, run: RunRecord, record: AsyncRecord) -> ImageRequest:
        files = Attached()
        for purpose, sha256 in record.inputs:
            content = await self._assets.get(sha256)
            if purpose == "mask":
                files.mask = (content,)
            elif purpose == "control":
                files.controls.append((f"control_image[{len(files.controls)}]", (content,)))
            else:
                files.images.append((f"image[{len(files.images)}]", (content,)))
        return read_form_request(Task(run.task), run.request, files, self._limits)
