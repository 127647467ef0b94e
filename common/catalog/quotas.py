"""What keys use, and how several routers agree on what is left, without a commit for each request.

Usage is written in the transaction that stores a run's result, so it is the sum of the runs that succeeded, exactly. Of
what is left a router takes a lease: enough for what it has in flight and for some requests to come, which it then admits
by itself. What all routers may give away together is never more than what is left. A lease ends by itself soon after its
router; what was held for runs that nobody finished is free again then.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from common.catalog.database import Database
from common.catalog.records import Amounts, Lease, Limits, UsageRecord
from common.catalog.tables import ApiKey, AsyncRun, KeyUsage, QuotaLease, Run
from common.clock import utc_now

UNLIMITED = 2**31 - 1
NOTHING = Amounts()

UsageRecords = list[UsageRecord]


class Quotas:
    """Every method raises CatalogUnavailable when the database cannot be used."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def exchange(
        self,
        key_id: str,
        holder: str,
        limits: Limits,
        want: Amounts,
        *,
        held: Amounts = NOTHING,
        lease_s: float,
        now: datetime | None = None,
    ) -> Lease:
        """Replace the lease that `holder` has of a key's limits by one of `want`, or of as much of it as there is.

        held: what it has admitted already, which stays leased in any case. What another router has in flight may stand in
        the usage and in its lease at once, so there can seem to be less left than was given out; a lease that shrank below
        what is held would be given out a second time.
        """
        now = now or utc_now()
        async with self._db.write() as session:
            # Two routers that ask for the same key's last credits take turns.
            await session.get(ApiKey, key_id, with_for_update=True)
            room = await _room(session, key_id, holder, limits, now)
            granted = Amounts(
                requests=max(held.requests, min(want.requests, room.requests)),
                images=max(held.images, min(want.images, room.images)),
                gpu_s=max(held.gpu_s, min(want.gpu_s, room.gpu_s)),
                in_flight=max(held.in_flight, min(want.in_flight, room.in_flight)),
            )
            await session.execute(delete(QuotaLease).where(QuotaLease.key_id == key_id, QuotaLease.holder == holder))
            if granted != Amounts():
                lease = QuotaLease(
                    key_id=key_id,
                    holder=holder,
                    expires_at=now + timedelta(seconds=lease_s),
                    in_flight=granted.in_flight,
                    images=granted.images,
                    gpu_s=granted.gpu_s,
                    minute=minute_of(now),
                    requests=granted.requests,
                )
                session.add(lease)
        return Lease(granted=granted, room=room)

    async def usage(self, *, since: str, key_id: str | None = None) -> UsageRecords:
        """By day from `since` (such as 2026-11-25) on, then by key."""
        query = select(KeyUsage).where(KeyUsage.day >= since).order_by(KeyUsage.day, KeyUsage.key_id)
        if key_id is not None:
            query = query.where(KeyUsage.key_id == key_id)
        async with self._db.read() as session:
            return [
                UsageRecord(key_id=row.key_id, day=row.day, runs=row.runs, images=row.images, gpu_s=row.gpu_s)
                for row in await session.scalars(query)
            ]


async def _room(session: AsyncSession, key_id: str, holder: str, limits: Limits, now: datetime) -> Amounts:
    """What is left for `holder`, whatever it holds itself already."""
    others = list(
        await session.scalars(
            select(QuotaLease).where(QuotaLease.key_id == key_id, QuotaLease.holder != holder, QuotaLease.expires_at > now)
        )
    )
    used = await session.get(KeyUsage, (key_id, day_of(now)))
    # Runs that nobody waits for on a connection are held by no router: they count from the catalog until they end.
    open_async = select(func.count(), func.coalesce(func.sum(Run.n), 0)).join(AsyncRun, AsyncRun.run_id == Run.id)
    runs, pictures = (await session.execute(open_async.where(Run.key_id == key_id, AsyncRun.ended_at.is_(None)))).one()
    asked = sum(each.requests for each in others if each.minute == minute_of(now))
    images = sum(each.images for each in others) + pictures + (used.images if used else 0)
    gpu_s = sum(each.gpu_s for each in others) + (used.gpu_s if used else 0.0)
    in_flight = sum(each.in_flight for each in others) + runs
    return Amounts(
        requests=_left(limits.requests_per_minute, asked),
        images=_left(limits.images_per_day, images),
        gpu_s=UNLIMITED if limits.gpu_seconds_per_day is None else limits.gpu_seconds_per_day - gpu_s,
        in_flight=_left(limits.max_in_flight, in_flight),
    )


def _left(limit: int | None, taken: int) -> int:
    return UNLIMITED if limit is None else limit - taken


async def billed(
    database: Database, session: AsyncSession, key_id: str | None, images: int, gpu_s: float, now: datetime
) -> None:
    """Add a run that succeeds to its key's usage, in the transaction that says so."""
    if key_id is None:
        return
    day = day_of(now)
    row = {"key_id": key_id, "day": day, "runs": 0, "images": 0, "gpu_s": 0.0}
    await database.insert_absent(session, KeyUsage, [row])
    usage = await session.get(KeyUsage, (key_id, day), with_for_update=True)
    assert usage is not None
    usage.runs += 1
    usage.images += images
    usage.gpu_s += gpu_s


def gpu_seconds(timings: Mapping[str, Any]) -> float:
    """What a run took of its device: without waiting, and without loading, which serves those after it as well."""
    total_s, queued_s, load_s = (float(timings.get(name) or 0) for name in ("total", "queued", "load"))
    return max(0.0, total_s - queued_s - load_s)


def day_of(now: datetime) -> str:
    """The day that usage at this moment is counted to."""
    return now.date().isoformat()


def minute_of(now: datetime) -> int:
    """The minute that requests at this moment are counted to."""
    return int(now.timestamp() // 60)
