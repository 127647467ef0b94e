"""Runs, their attempts and their images.

A run changes only under the lock of its own row, and its result is written in one transaction, so whoever reads it sees
a run either without pictures or whole. Attempts are fenced: only the latest may report, and nothing may after the end.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from common.catalog.async_runs import opened
from common.catalog.behind import WritesBehind
from common.catalog.database import Database
from common.catalog.errors import AttemptFenced
from common.catalog.grouped import GroupedWrites
from common.catalog.idempotency import taken
from common.catalog.ids import new_id
from common.catalog.parts import end_parts
from common.catalog.quotas import billed, gpu_seconds
from common.catalog.records import (
    OPEN_ATTEMPT,
    OPEN_RUN,
    AttemptStatus,
    Claim,
    Earlier,
    ImageRecord,
    NewAsync,
    NewImage,
    NewRun,
    RunRecord,
    RunStatus,
    SweepReport,
)
from common.catalog.rows import image_record, run_record, select_images, select_runs
from common.catalog.run_ends import INTERRUPTED, close_attempts
from common.catalog.run_rows import row_of_run
from common.catalog.sqlite_inserts import Insert
from common.catalog.tables import Asset, AsyncRun, Attempt, Image, Run, RunInput, RunTag, Tag
from common.clock import utc_now
from common.errors import CatalogUnavailable, InvalidRequest, NotFound

MAX_TAG_LENGTH = 64
_BATCH = 500
"""Rows in one statement: SQLite takes 32,766 parameters, and a lock is not held for long."""

_New = tuple[NewRun, str | None]
"""A run, and the node that it is about to be sent to."""

RunRecords = list[RunRecord]
Ids = list[str]


class Runs:
    """Every method raises CatalogUnavailable when the database cannot be used."""

    def __init__(self, database: Database) -> None:
        self._db = database
        at_once = self._write_new_at_once if database.may_insert_at_once else None
        self._new = GroupedWrites(self._write_new, at_once=at_once)
        soon_at_once = partial(at_once, absent=True) if at_once is not None else None
        self._soon = WritesBehind(partial(self._write_new, absent=True), at_once=soon_at_once)

    async def open(self, run: NewRun, claim: Claim | None = None, new_async: NewAsync | None = None) -> Earlier | None:
        """Record an accepted request as queued. Opening an id again changes nothing: router and node both do it.

        claim: the idempotency key it came with; new_async: what is kept beside a run that nobody waits for.
        Returns: the answer that the key stands for already; then nothing is recorded.
        Raises: KeyReused, KeyInFlight; TooManyRequests: as many async runs are open as may be; nothing is recorded.
        """
        now = utc_now()
        async with self._db.write() as session:
            if claim is not None:
                earlier = await taken(self._db, session, claim, run.id, now)
                if earlier is not None:
                    return earlier
            await self._db.insert_absent(session, Run, [row_of_run(run, now)])
            if new_async is not None:
                await opened(self._db, session, run.id, new_async, now)
        return None

    async def open_new(self, run: NewRun, *, first_node: str | None) -> None:
        """Record an accepted request whose id nobody else can have recorded. Those that come together share a commit.

        first_node: the node that it is about to be sent to: its first attempt is recorded with it.
        """
        await self._new.put((run, first_node))

    def _write_new_at_once(self, new: Sequence[_New], *, absent: bool = False) -> bool:
        return self._db.insert_at_once(_rows_of_new(new), absent=absent)

    async def _write_new(self, new: Sequence[_New], *, absent: bool = False) -> None:
        await self._db.insert_all(_rows_of_new(new), absent=absent)

    @property
    def may_be_opened_soon(self) -> bool:
        """Whether runs may be sent before they are recorded. Not where the database may be away while nodes are there, which
        would work for nothing; a file is where they are. Nor while it takes nothing."""
        return self._db.may_insert_at_once and not self._soon.falls_behind

    def open_soon(self, run: NewRun, *, node: str) -> None:
        """Record an accepted request that is just sent to `node`, within some milliseconds and with all that come meanwhile.

        For this process it is recorded: whoever asks it for the run waits until it is. Its node records it as its turn comes,
        if that is sooner (`take_on`), and what was recorded first stays.
        """
        self._soon.put(run.id, (run, node))

    async def settled(self) -> None:
        """Returns when all that was opened here is recorded."""
        await self._soon.all_written()

    async def close(self) -> None:
        """The same, for the last time: what cannot be recorded now never is."""
        await self._soon.close()

    async def begin_attempt(self, run_id: str, *, node: str) -> int:
        """Record that the run is about to be sent to `node`, and fence the attempts before.

        Returns: the attempt's number, from 1.
        Raises: NotFound. AttemptFenced: the run has ended.
        """
        await self._soon.written(run_id)
        async with self._db.write() as session:
            run = await _locked(session, run_id)
            return await _begin_attempt(session, run, run.current_attempt + 1, node)

    async def take_on(self, run: NewRun, no: int, *, node: str) -> None:
        """The same as `attempt_running`, by the node that attempt `no` was sent to. What is not recorded yet is recorded with
        it: the router that sent it may do so in this moment, or keep another catalog. Raises: AttemptFenced.
        """
        try:
            await self.attempt_running(run.id, no)
            return
        except NotFound:
            async with self._db.write() as session:
                await self._db.insert_absent(session, Run, [row_of_run(run, utc_now())])
                recorded = await _locked(session, run.id)
                if recorded.current_attempt > no:
                    raise AttemptFenced(f"Attempt {no} of run {run.id} is not the current one any more.") from None
                if recorded.current_attempt < no:
                    await _begin_attempt(session, recorded, no, node)
        await self.attempt_running(run.id, no)

    async def attempt_running(self, run_id: str, no: int) -> None:
        """Record that a worker has begun.

        Raises: NotFound. AttemptFenced: a later attempt began, or the run has ended; the node must not go on.
        """
        now = utc_now()
        async with self._db.write() as session:
            run, attempt = await _locked_attempt(session, run_id, no)
            run.status = RunStatus.RUNNING
            run.heartbeat_at = now
            run.started_at = run.started_at or now
            attempt.status = AttemptStatus.RUNNING
            attempt.started_at = attempt.started_at or now

    async def attempt_failed(self, run_id: str, no: int, *, code: str, message: str) -> None:
        """Close one attempt; the run stays open for another. An attempt that is closed already stays as it is.

        Raises: NotFound.
        """
        await self._soon.written(run_id)
        async with self._db.write() as session:
            attempt = await session.get(Attempt, (run_id, no), with_for_update=True)
            if attempt is None:
                raise _no_run(run_id)
            if attempt.status in OPEN_ATTEMPT:
                attempt.status = AttemptStatus.FAILED
                attempt.error_code, attempt.error_message = code, message
                attempt.finished_at = utc_now()

    async def finish(
        self,
        run_id: str,
        no: int,
        *,
        images: Sequence[NewImage],
        effective: Mapping[str, Any],
        timings: Mapping[str, float],
        answer: Mapping[str, Any],
    ) -> Ids:
        """Record the result, all of it or nothing. The bytes of `images` must be durable before.

        Asking again with the same result, because the first answer was lost, gives the same ids.

        Returns: the ids of the images, in the order given.
        Raises: NotFound. AttemptFenced: a later attempt began, or the run has ended; nothing was stored.
        """
        now = utc_now()
        async with self._db.write() as session:
            run = await _locked(session, run_id)
            if run.status is RunStatus.SUCCEEDED and run.current_attempt == no:
                return await _stored_already(session, run, images)
            _, attempt = await _locked_attempt(session, run_id, no)
            # Sorted, so that two results with the same pictures cannot wait for each other.
            assets = [_asset_row(image, now) for image in sorted(images, key=lambda image: image.sha256)]
            await self._db.insert_absent(session, Asset, assets)
            rows = [_image_row(run_id, image, now) for image in images]
            session.add_all(rows)
            attempt.status = AttemptStatus.SUCCEEDED
            attempt.finished_at = now
            run.status = RunStatus.SUCCEEDED
            run.effective, run.timings, run.answer = dict(effective), dict(timings), dict(answer)
            run.started_at = run.started_at or now
            run.heartbeat_at = run.finished_at = now
            if run.parent_id is None:
                await billed(self._db, session, run.key_id, len(rows), gpu_seconds(timings), now)
            return [row.id for row in rows]

    async def fail(self, run_id: str, *, code: str, message: str) -> bool:
        """End the run as failed, and its open attempts. False: it has ended already. Raises: NotFound."""
        return await self._end(run_id, RunStatus.FAILED, AttemptStatus.FAILED, code, message)

    async def cancel(self, run_id: str, *, reason: str) -> bool:
        """End the run as cancelled, and fence its attempts. False: it has ended already. Raises: NotFound."""
        return await self._end(run_id, RunStatus.CANCELLED, AttemptStatus.ABANDONED, "cancelled", reason)

    async def _end(self, run_id: str, status: RunStatus, attempts: AttemptStatus, code: str, message: str) -> bool:
        try:
            await self._soon.written(run_id)
        except CatalogUnavailable:
            # Recorded later it would be open, with nobody left to close it.
            self._soon.drop(run_id)
            raise
        now = utc_now()
        async with self._db.write() as session:
            run = await _locked(session, run_id)
            if run.status not in OPEN_RUN:
                return False
            run.status, run.error_code, run.error_message = status, code, message
            run.finished_at = now
            await close_attempts(session, [run_id], attempts, code, message, now)
            await end_parts(session, [run_id], (status, attempts), code, message, now)
            return True

    async def get(self, run_id: str) -> RunRecord:
        """One run with its attempts, images, tags and parts. Raises: NotFound."""
        await self._soon.written(run_id)
        async with self._db.read() as session:
            run = (await session.scalars(select_runs().where(Run.id == run_id))).one_or_none()
        if run is None:
            raise _no_run(run_id)
        return run_record(run)

    async def list(
        self, *, limit: int = 20, after: str | None = None, status: RunStatus | None = None, model: str | None = None
    ) -> RunRecords:
        """Runs, newest first, with their parts. after: the id of the last run of the page before."""
        query = select_runs().where(Run.parent_id.is_(None)).order_by(Run.id.desc()).limit(limit)
        if after is not None:
            query = query.where(Run.id < after)
        if status is not None:
            query = query.where(Run.status == status)
        if model is not None:
            query = query.where(Run.model == model)
        await self._soon.all_written()
        async with self._db.read() as session:
            return [run_record(run) for run in await session.scalars(query)]

    async def image(self, image_id: str) -> ImageRecord:
        """One image. Raises: NotFound."""
        async with self._db.read() as session:
            image = (await session.scalars(select_images().where(Image.id == image_id))).one_or_none()
        if image is None:
            raise NotFound(f"There is no image {image_id!r}.", code="image_not_found")
        return image_record(image)

    async def heartbeat(self, run_ids: Collection[str]) -> None:
        """A sign of life for open runs that the caller holds.

        A row that somebody holds locked is passed over, or the others of its batch would wait for it and be taken for dead:
        whoever changes it gives a sign of life by that, and the next one comes soon.
        """
        ids = sorted(run_ids)
        for start in range(0, len(ids), _BATCH):
            async with self._db.write() as session:
                open_runs = select(Run.id).where(Run.id.in_(ids[start : start + _BATCH]), Run.status.in_(OPEN_RUN))
                free = (await session.scalars(open_runs.with_for_update(key_share=True, skip_locked=True))).all()
                await session.execute(update(Run).where(Run.id.in_(free)).values(heartbeat_at=utc_now()))

    async def sweep(self, *, older_than_s: float, now: datetime | None = None) -> SweepReport:
        """Fail, as `interrupted`, every open run without a sign of life for `older_than_s`.

        Not async runs: they wait in the catalog for a router.
        """
        now = now or utc_now()
        message = f"No process has given a sign of life of this run for {older_than_s:g} s."
        waiting = select(AsyncRun.run_id).where(AsyncRun.ended_at.is_(None))
        heard_before = Run.heartbeat_at < now - timedelta(seconds=older_than_s)
        dead = (Run.status.in_(OPEN_RUN), heard_before, Run.id.not_in(waiting))
        values = {"status": RunStatus.FAILED, "error_code": INTERRUPTED, "error_message": message, "finished_at": now}
        closed: Ids = []
        attempts = 0
        while True:
            async with self._db.write() as session:
                some = select(Run.id).where(*dead).order_by(Run.id).limit(_BATCH)
                # `dead` again outside: a heartbeat that came between finding and locking the row counts.
                ended = await session.scalars(update(Run).where(Run.id.in_(some), *dead).values(values).returning(Run.id))
                batch = Ids(ended)
                attempts += await close_attempts(session, batch, AttemptStatus.FAILED, INTERRUPTED, message, now)
                await end_parts(session, batch, (RunStatus.FAILED, AttemptStatus.FAILED), INTERRUPTED, message, now)
            if not batch:
                return SweepReport(runs_closed=tuple(closed), attempts_closed=attempts)
            closed += batch

    async def tag(self, run_id: str, tags: Collection[str]) -> None:
        """Put tags on a run, beside those it has. Raises: NotFound, InvalidRequest: an empty or overlong tag."""
        names = sorted({tag.strip() for tag in tags})
        for name in names:
            if not 0 < len(name) <= MAX_TAG_LENGTH:
                raise InvalidRequest(f"A tag has 1 to {MAX_TAG_LENGTH} characters; got {len(name)}.", param="tags")
        await self._soon.written(run_id)
        async with self._db.write() as session:
            await _locked(session, run_id)
            await self._db.insert_absent(session, Tag, [{"name": name} for name in names])
            ids = (await session.scalars(select(Tag.id).where(Tag.name.in_(names)))).all()
            await self._db.insert_absent(session, RunTag, [{"run_id": run_id, "tag_id": tag_id} for tag_id in ids])

    async def stored(self, sha256s: Collection[str]) -> frozenset[str]:
        """Those of `sha256s` that have a row, so their bytes must stay."""
        names = sorted(sha256s)
        known: set[str] = set()
        for start in range(0, len(names), _BATCH):
            batch = names[start : start + _BATCH]
            async with self._db.read() as session:
                known.update(await session.scalars(select(Asset.sha256).where(Asset.sha256.in_(batch))))
                known.update(await session.scalars(select(RunInput.sha256).where(RunInput.sha256.in_(batch))))
        return frozenset(known)


def _no_run(run_id: str) -> NotFound:
    return NotFound(f"There is no run {run_id!r}.", code="run_not_found")


async def _locked(session: AsyncSession, run_id: str) -> Run:
    run = await session.get(Run, run_id, with_for_update=True)
    if run is None:
        raise _no_run(run_id)
    return run


def _refuse_ended(run: Run) -> None:
    if run.status not in OPEN_RUN:
        raise AttemptFenced(f"Run {run.id} has ended: it is {run.status.value}.")


async def _locked_attempt(session: AsyncSession, run_id: str, no: int) -> tuple[Run, Attempt]:
    """The run and its attempt `no`, if that is the one that counts. Raises: NotFound, AttemptFenced."""
    run = await _locked(session, run_id)
    _refuse_ended(run)
    attempt = await session.get(Attempt, (run_id, no))
    if attempt is None:
        raise NotFound(f"Run {run_id!r} has no attempt {no}.", code="attempt_not_found")
    if no != run.current_attempt or attempt.status not in OPEN_ATTEMPT:
        raise AttemptFenced(
            f"Attempt {no} of run {run_id} is {attempt.status.value}; the current one is {run.current_attempt}."
        )
    return run, attempt


async def _begin_attempt(session: AsyncSession, run: Run, no: int, node: str) -> int:
    """Raises: AttemptFenced: the run has ended."""
    _refuse_ended(run)
    now = utc_now()
    await close_attempts(session, [run.id], AttemptStatus.ABANDONED, "superseded", None, now)
    run.current_attempt = no
    run.heartbeat_at = now
    session.add(Attempt(**_attempt_row(run.id, no, node, now)))
    return no


async def _stored_already(session: AsyncSession, run: Run, images: Sequence[NewImage]) -> Ids:
    stored = {(row.index, row.sha256): row.id for row in await session.scalars(select(Image).where(Image.run_id == run.id))}
    if stored.keys() != {(image.index, image.sha256) for image in images}:
        raise AttemptFenced(f"Run {run.id} has ended with other pictures.")
    return [stored[image.index, image.sha256] for image in images]


def _rows_of_new(new: Sequence[_New]) -> list[Insert]:
    now = utc_now()
    runs = [row_of_run(run, now) | {"current_attempt": 0 if node is None else 1} for run, node in new]
    return [(Run, runs), (Attempt, [_attempt_row(run.id, 1, node, now) for run, node in new if node is not None])]


def _attempt_row(run_id: str, no: int, node: str, now: datetime) -> dict[str, Any]:
    return {
        "run_id": run_id,
        "no": no,
        "node": node,
        "status": AttemptStatus.SENT,
        "error_code": None,
        "error_message": None,
        "created_at": now,
        "started_at": None,
        "finished_at": None,
    }


def _asset_row(image: NewImage, now: datetime) -> dict[str, Any]:
    return {
        "sha256": image.sha256,
        "size_bytes": image.size_bytes,
        "format": image.format,
        "width_px": image.width_px,
        "height_px": image.height_px,
        "created_at": now,
    }


def _image_row(run_id: str, image: NewImage, now: datetime) -> Image:
    return Image(
        id=image.id or new_id("img"), run_id=run_id, index=image.index, sha256=image.sha256, seed=image.seed, created_at=now
    )
