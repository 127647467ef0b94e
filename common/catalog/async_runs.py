"""Async runs: who carries one now, what was uploaded with it, and the webhook that is due when it has ended.

A router takes a run on for a short time, a lease, and prolongs it; when it dies or stops, another takes the run on. Two
may believe for a moment that they carry the same run (a process that was stopped and continued): then the attempts of a
run are fenced, so that only one result is stored. Webhooks are sent in the same way, at least once.
"""

from collections.abc import Collection
from datetime import datetime, timedelta

from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from common.catalog.database import Database
from common.catalog.records import OPEN_RUN, AsyncRecord, DueWebhook, NewAsync
from common.catalog.tables import AsyncRun, Run, RunInput
from common.clock import utc_now
from common.errors import TooManyRequests

FULL_RETRY_S = 30


class AsyncRuns:
    """Every method raises CatalogUnavailable when the database cannot be used."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def take(self, owner: str, *, limit: int, lease_s: float) -> list[str]:
        """Take on runs that nobody carries, the oldest first. Returns: their ids."""
        now = utc_now()
        query = select(AsyncRun.run_id).where(AsyncRun.ended_at.is_(None), AsyncRun.leased_until <= now)
        query = query.order_by(AsyncRun.run_id).limit(limit)
        async with self._db.read() as session:
            # Asked every second: on SQLite a transaction that may write would keep others from writing.
            if await session.scalar(query) is None:
                return []
        async with self._db.write() as session:
            ids = list(await session.scalars(query.with_for_update(skip_locked=True)))
            leased = update(AsyncRun).where(AsyncRun.run_id.in_(ids))
            await session.execute(leased.values(owner=owner, leased_until=now + timedelta(seconds=lease_s)))
            await session.execute(update(Run).where(Run.id.in_(ids), Run.status.in_(OPEN_RUN)).values(heartbeat_at=now))
        return ids

    async def renew(self, owner: str, run_ids: Collection[str], *, lease_s: float) -> set[str]:
        """Prolong leases. Returns: the runs that `owner` still carries; others ended, or another router has them."""
        until = utc_now() + timedelta(seconds=lease_s)
        ours = (AsyncRun.run_id.in_(sorted(run_ids)), AsyncRun.owner == owner, AsyncRun.ended_at.is_(None))
        async with self._db.write() as session:
            statement = update(AsyncRun).where(*ours).values(leased_until=until).returning(AsyncRun.run_id)
            return set(await session.scalars(statement))

    async def put_back(self, owner: str, run_id: str, *, for_s: float) -> None:
        """Give up a lease; anybody may take the run on after `for_s`."""
        until = utc_now() + timedelta(seconds=for_s)
        async with self._db.write() as session:
            statement = update(AsyncRun).where(AsyncRun.run_id == run_id, AsyncRun.owner == owner)
            await session.execute(statement.values(owner=None, leased_until=until))

    async def ended(self, run_id: str) -> None:
        """The run has ended: nobody carries it any more, its uploads may go, and its webhook is due."""
        now = utc_now()
        async with self._db.write() as session:
            found = await session.get(AsyncRun, run_id, with_for_update=True)
            if found is None or found.ended_at is not None:
                return
            found.ended_at, found.owner = now, None
            found.webhook_due_at = None if found.webhook_url is None else now
            await session.execute(delete(RunInput).where(RunInput.run_id == run_id))

    async def get(self, run_id: str) -> AsyncRecord | None:
        """What is known of an async run beside the run itself; None when it is none."""
        async with self._db.read() as session:
            found = await session.get(AsyncRun, run_id)
            if found is None:
                return None
            inputs = await session.scalars(select(RunInput).where(RunInput.run_id == run_id).order_by(RunInput.position))
            return AsyncRecord(
                run_id=run_id,
                public_url=found.public_url,
                inputs=tuple((each.purpose, each.sha256) for each in inputs),
                webhook_url=found.webhook_url,
                webhook_tries=found.webhook_tries,
                webhook_error=found.webhook_error,
                webhook_pending=found.webhook_url is not None and (found.ended_at is None or found.webhook_due_at is not None),
            )

    async def due_webhooks(self, *, limit: int, lease_s: float) -> list[DueWebhook]:
        """Take on webhooks that are due; nobody else gets them for `lease_s`."""
        now = utc_now()
        query = select(AsyncRun).where(AsyncRun.webhook_due_at <= now).order_by(AsyncRun.webhook_due_at).limit(limit)
        async with self._db.read() as session:
            if await session.scalar(query) is None:
                return []
        async with self._db.write() as session:
            due = list(await session.scalars(query.with_for_update(skip_locked=True)))
            for each in due:
                each.webhook_due_at = now + timedelta(seconds=lease_s)
                each.webhook_tries += 1
            return [DueWebhook(each.run_id, each.webhook_url or "", each.public_url, each.webhook_tries) for each in due]

    async def webhook_done(self, run_id: str, *, error: str | None, again_in_s: float | None) -> None:
        """Note how a try went. again_in_s: when to try again; None: not any more."""
        due_at = None if again_in_s is None else utc_now() + timedelta(seconds=again_in_s)
        async with self._db.write() as session:
            statement = update(AsyncRun).where(AsyncRun.run_id == run_id)
            await session.execute(statement.values(webhook_due_at=due_at, webhook_error=error))


async def opened(database: Database, session: AsyncSession, run_id: str, new: NewAsync, now: datetime) -> None:
    """Record an async run beside its run, in the same transaction. Raises: TooManyRequests: as many wait as may."""
    waiting = await session.scalar(select(func.count()).select_from(AsyncRun).where(AsyncRun.ended_at.is_(None)))
    if (waiting or 0) >= new.most:
        raise TooManyRequests(
            f"Rate limit reached for async runs: {waiting} of {new.most} have not ended yet. "
            f"Please try again in {FULL_RETRY_S}s.",
            retry_after_s=FULL_RETRY_S,
        )
    row = {
        "run_id": run_id,
        "public_url": new.public_url,
        "owner": new.owner,
        "leased_until": now + timedelta(seconds=new.lease_s),
        "webhook_url": new.webhook_url,
        "webhook_tries": 0,
    }
    await database.insert_absent(session, AsyncRun, [row])
    inputs = [
        {"run_id": run_id, "position": position, "purpose": purpose, "sha256": sha256}
        for position, (purpose, sha256) in enumerate(new.inputs)
    ]
    await database.insert_absent(session, RunInput, inputs)
