"""Long jobs: what there is to do, who is at it, how far it is, and what came of it.

A router that works on a job holds it for a short time, a lease, and prolongs it; when that router dies, another takes the
job up. Each beginning has a number, and only the latest may write: a router that was stopped and continued cannot harm.
Whatever ends a job writes its summary in the same statement, and the tables refuse an end without one.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from common.catalog.database import Database
from common.catalog.ids import new_id
from common.catalog.job_records import OPEN_JOB, JobEvent, JobRecord, JobState, NewJob
from common.catalog.tables import Job, JobEventRow
from common.clock import utc_now
from common.errors import AquatintError, Conflict, NotFound

Summary = dict[str, Any]


class JobLeft(AquatintError):
    """Another router has taken the job up, or it has ended: whoever hears this writes nothing more."""

    code, retryable = "job_left", False


class Jobs:
    """Every method raises CatalogUnavailable when the database cannot be used."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def add(self, new: NewJob) -> JobRecord:
        """Put a job down to be done. Raises: Conflict: one like it is open, or its turn was taken; nothing is put down."""
        now = utc_now()
        job = Job(
            id=new_id("job"),
            kind=new.kind,
            state=JobState.QUEUED,
            params=dict(new.params),
            only_one=new.only_one,
            period=new.period,
            key_id=new.key_id,
            done=0,
            total=None,
            unit=None,
            owner=None,
            leased_until=now,
            executions=0,
            last_event=0,
            cancel_asked_at=None,
            summary=None,
            error_code=None,
            error_message=None,
            created_at=now,
            started_at=None,
            finished_at=None,
        )
        async with self._db.write() as session:
            session.add(job)
            try:
                await session.flush()
            except IntegrityError as error:
                raise Conflict(f"A job of this kind ({new.kind}) has not ended yet.", code="job_open") from error
            _happened(session, job, "state", _told_of(job), now)
        return _record(job)

    async def get(self, job_id: str) -> JobRecord:
        """One job. Raises: NotFound."""
        async with self._db.read() as session:
            job = await session.get(Job, job_id)
            if job is None:
                raise _no_job(job_id)
            return _record(job)

    async def list(
        self, *, kind: str | None = None, state: JobState | None = None, before: str | None = None, limit: int = 50
    ) -> Sequence[JobRecord]:
        """Jobs, the newest first. before: older than the job of this id."""
        query = select(Job).order_by(Job.id.desc()).limit(limit)
        for given, holds in ((kind, Job.kind == kind), (state, Job.state == state), (before, Job.id < (before or ""))):
            if given is not None:
                query = query.where(holds)
        async with self._db.read() as session:
            return [_record(job) for job in await session.scalars(query)]

    async def counts(self) -> dict[tuple[str, str], int]:
        """How many jobs there are of each kind in each state."""
        async with self._db.read() as session:
            rows = await session.execute(select(Job.kind, Job.state, func.count()).group_by(Job.kind, Job.state))
            return {(kind, state.value): count for kind, state, count in rows}

    async def waiting(self) -> bool:
        """Whether there are open jobs that nobody holds. Asked every second, so it only reads."""
        query = select(Job.id).where(Job.finished_at.is_(None), Job.leased_until <= utc_now()).limit(1)
        async with self._db.read() as session:
            return await session.scalar(query) is not None

    async def take_up(self, *, limit: int, lease_s: float) -> Sequence[JobRecord]:
        """Open jobs that nobody holds, the oldest first; nobody else gets them for `lease_s`."""
        now = utc_now()
        query = select(Job).where(Job.finished_at.is_(None), Job.leased_until <= now).order_by(Job.id).limit(limit)
        async with self._db.write() as session:
            jobs = list(await session.scalars(query.with_for_update(skip_locked=True)))
            for job in jobs:
                job.leased_until = now + timedelta(seconds=lease_s)
            return [_record(job) for job in jobs]

    async def begin(self, job_id: str, owner: str, *, lease_s: float) -> JobRecord | None:
        """Begin with a job, or with what is left of it; it is `owner`'s from now on. None: it has ended, or is gone."""
        now = utc_now()
        async with self._db.write() as session:
            job = await session.get(Job, job_id, with_for_update=True)
            if job is None or job.finished_at is not None:
                return None
            job.owner, job.leased_until = owner, now + timedelta(seconds=lease_s)
            job.executions += 1
            job.state = JobState.RUNNING
            job.started_at = job.started_at or now
            _happened(session, job, "state", _told_of(job), now)
            return _record(job)

    async def renew(self, owner: str, job_ids: Collection[str], *, lease_s: float) -> None:
        """Prolong the leases of jobs that `owner` still has."""
        if not job_ids:
            return
        ours = (Job.id.in_(sorted(job_ids)), Job.owner == owner, Job.finished_at.is_(None))
        async with self._db.write() as session:
            await session.execute(update(Job).where(*ours).values(leased_until=utc_now() + timedelta(seconds=lease_s)))

    async def put_back(self, owner: str) -> None:
        """Give up all leases of `owner`: anybody may take its jobs up now."""
        async with self._db.write() as session:
            ours = update(Job).where(Job.owner == owner, Job.finished_at.is_(None))
            await session.execute(ours.values(leased_until=utc_now()))

    async def advance(self, job_id: str, execution: int, *, done: int, total: int | None, unit: str) -> bool:
        """Say how far a job is. Returns: whether it may go on, rather than being cancelled. Raises: JobLeft."""
        now = utc_now()
        async with self._db.write() as session:
            job = await _held(session, job_id, execution)
            if (job.done, job.total, job.unit) != (done, total, unit):
                job.done, job.total, job.unit = done, total, unit
                _happened(session, job, "progress", {"done": done, "total": total, "unit": unit}, now)
            return job.cancel_asked_at is None

    async def cancel_asked(self, job_id: str) -> bool:
        """Whether somebody wants a job to end, or it is gone."""
        async with self._db.read() as session:
            job = await session.get(Job, job_id)
            return job is None or job.cancel_asked_at is not None

    async def finish(
        self,
        job_id: str,
        execution: int,
        state: JobState,
        summary: Mapping[str, Any],
        *,
        error: tuple[str, str] | None = None,
    ) -> None:
        """End a job. summary: its `done`, `total` and `unit`, and its `result`. error: code and message of one that failed.

        Raises: JobLeft.
        """
        async with self._db.write() as session:
            job = await _held(session, job_id, execution)
            job.done, job.total, job.unit = summary["done"], summary["total"], summary["unit"]
            _end(session, job, state, dict(summary), error)

    async def cancel(self, job_id: str) -> JobRecord:
        """Have a job end: at once when nobody has begun with it, else at its next step. Raises: NotFound.

        Conflict: it has ended in another way.
        """
        async with self._db.write() as session:
            job = await session.get(Job, job_id, with_for_update=True)
            if job is None:
                raise _no_job(job_id)
            if job.finished_at is not None and job.state is not JobState.CANCELLED:
                raise Conflict(f"The job has ended already: it is {job.state}.", code="job_ended")
            if job.finished_at is None and job.cancel_asked_at is None:
                job.cancel_asked_at = utc_now()
                if job.executions == 0:
                    _end(session, job, JobState.CANCELLED, _summary_without_work(job), None)
            return _record(job)

    async def give_up(self, job_id: str, *, code: str, message: str) -> None:
        """End a job as failed that nobody can go on with. One that has ended stays as it is."""
        async with self._db.write() as session:
            job = await session.get(Job, job_id, with_for_update=True)
            if job is not None and job.finished_at is None:
                _end(session, job, JobState.FAILED, _summary_without_work(job), (code, message))

    async def ended(self, before: datetime, *, limit: int) -> Sequence[str]:
        """Ids of jobs that ended before a moment, the oldest first."""
        query = select(Job.id).where(Job.finished_at < before).order_by(Job.id).limit(limit)
        async with self._db.read() as session:
            return list(await session.scalars(query))

    async def remove(self, job_ids: Collection[str]) -> None:
        """Forget jobs that have ended, and what happened to them."""
        async with self._db.write() as session:
            await session.execute(delete(Job).where(Job.id.in_(job_ids), Job.finished_at.is_not(None)))

    async def events(self, job_id: str, *, after: int, limit: int = 500) -> Sequence[JobEvent]:
        """What happened to a job after the event of that number."""
        query = select(JobEventRow).where(JobEventRow.job_id == job_id, JobEventRow.no > after)
        async with self._db.read() as session:
            found = await session.scalars(query.order_by(JobEventRow.no).limit(limit))
            return [JobEvent(no=each.no, kind=each.kind, data=each.data, created_at=each.created_at) for each in found]


async def _held(session: AsyncSession, job_id: str, execution: int) -> Job:
    job = await session.get(Job, job_id, with_for_update=True)
    if job is None or job.finished_at is not None or job.executions != execution:
        raise JobLeft(f"Job {job_id} has ended, or another router is at it.")
    return job


def _end(session: AsyncSession, job: Job, state: JobState, summary: Summary, error: tuple[str, str] | None) -> None:
    assert state not in OPEN_JOB
    now = utc_now()
    job.state, job.finished_at = state, now
    took_s = (now - (job.started_at or now)).total_seconds()
    job.summary = summary | {"executions": job.executions, "seconds": round(took_s, 3)}
    job.error_code, job.error_message = error or (None, None)
    _happened(session, job, "state", _told_of(job), now)


def _summary_without_work(job: Job) -> Summary:
    return {"done": job.done, "total": job.total, "unit": job.unit, "result": {}}


def _happened(session: AsyncSession, job: Job, kind: str, data: dict[str, Any], now: datetime) -> None:
    job.last_event += 1
    session.add(JobEventRow(job_id=job.id, no=job.last_event, kind=kind, data=data, created_at=now))


def _told_of(job: Job) -> dict[str, Any]:
    """What an event says of a job's state."""
    told: dict[str, Any] = {"state": job.state.value, "executions": job.executions}
    if job.finished_at is not None:
        told |= {"summary": job.summary, "error": job.error_code and {"code": job.error_code, "message": job.error_message}}
    return told


def _no_job(job_id: str) -> NotFound:
    return NotFound(f"There is no job {job_id!r}.", code="job_not_found")


def _record(job: Job) -> JobRecord:
    return JobRecord(
        id=job.id,
        kind=job.kind,
        state=job.state,
        params=job.params,
        key_id=job.key_id,
        done=job.done,
        total=job.total,
        unit=job.unit,
        owner=job.owner,
        executions=job.executions,
        cancel_asked_at=job.cancel_asked_at,
        summary=job.summary,
        error_code=job.error_code,
        error_message=job.error_message,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
    )
