"""Idempotency keys: a request that comes again under one is answered as the first was, and makes nothing.

A key is a row that names a run, written in the very transaction that records the run; what became of the request is read
from the run. So there is no state between "claimed" and "recorded" in which a crash could leave a key, and of two routers
that get the same key at once one waits for the other's transaction and then finds its run.

    the run is queued or running     the same request: 409, try again
    the run succeeded                the same request: its answer again
    the run failed for good          the same request: its error again, which `remember_refusal` wrote down
    the run is an async one          the same request: that run, whatever has become of it
    anything else                    the key is free: nothing was made that a new run could double

"Anything else" is a run that was refused, cancelled, or failed in a way that may pass, and one of whose process nothing
was heard for `DEAD_AFTER_S`: it is closed on the spot, which fences its attempts.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from common.catalog.columns import storable_text
from common.catalog.database import Database
from common.catalog.parts import end_parts
from common.catalog.records import OPEN_RUN, AttemptStatus, Claim, Earlier, RunStatus
from common.catalog.run_ends import INTERRUPTED, close_attempts
from common.catalog.tables import AsyncRun, IdempotencyKey, Run
from common.clock import utc_now
from common.errors import KeyInFlight, KeyReused

DEAD_AFTER_S = 45.0
"""Four signs of life missed by router and node alike."""
LONGEST_WAIT_S = 30.0


class Idempotency:
    """Every method raises CatalogUnavailable when the database cannot be used."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def earlier(self, claim: Claim) -> Earlier | None:
        """The answer that counts for a request, before anything is done for it; None when there is none.

        Raises: KeyReused, KeyInFlight.
        """
        now = utc_now()
        async with self._db.read() as session:
            found = await session.get(IdempotencyKey, (claim.key_id, storable_text(claim.name)))
            if found is None:
                return None
            run = await session.get(Run, found.run_id)
            is_async = await session.get(AsyncRun, found.run_id) is not None
            return None if run is None or _dead(run, is_async, now) else _answer(found, run, is_async, claim, now)

    async def remember_refusal(self, claim: Claim, run_id: str, refusal: Mapping[str, Any]) -> None:
        """Write down the error that `run_id` was answered with, if the key still stands for that run."""
        async with self._db.write() as session:
            mine = (IdempotencyKey.key_id == claim.key_id, IdempotencyKey.name == storable_text(claim.name))
            statement = update(IdempotencyKey).where(*mine, IdempotencyKey.run_id == run_id)
            await session.execute(statement.values(refusal=dict(refusal)))

    async def forget(self, *, older_than_s: float) -> None:
        """Remove keys that were first used before then; the same key is a new one afterwards."""
        async with self._db.write() as session:
            old = IdempotencyKey.created_at < utc_now() - timedelta(seconds=older_than_s)
            await session.execute(delete(IdempotencyKey).where(old))


async def taken(database: Database, session: AsyncSession, claim: Claim, run_id: str, now: datetime) -> Earlier | None:
    """Make `run_id` the run of a key, within the transaction that records it.

    Returns: the answer of another run if that counts; then `run_id` must not be recorded.
    Raises: KeyReused, KeyInFlight.
    """
    name = storable_text(claim.name)
    row = {
        "key_id": claim.key_id,
        "name": name,
        "fingerprint": claim.fingerprint,
        "run_id": run_id,
        "created_at": now,
    }
    await database.insert_absent(session, IdempotencyKey, [row])
    ours = select(IdempotencyKey).where(IdempotencyKey.key_id == claim.key_id, IdempotencyKey.name == name)
    found = (await session.scalars(ours.with_for_update())).one_or_none()
    if found is None:
        # Forgotten for its age between these two statements.
        raise KeyInFlight(retry_after_s=1)
    if found.run_id == run_id:
        return None
    run = await session.get(Run, found.run_id, with_for_update=True)
    is_async = await session.get(AsyncRun, found.run_id) is not None
    if run is not None and _dead(run, is_async, now):
        run.status, run.error_code, run.finished_at = RunStatus.FAILED, INTERRUPTED, now
        run.error_message = "Nothing was heard of this run, and its request came again."
        await close_attempts(session, [run.id], AttemptStatus.FAILED, INTERRUPTED, run.error_message, now)
        ends = RunStatus.FAILED, AttemptStatus.FAILED
        await end_parts(session, [run.id], ends, INTERRUPTED, run.error_message, now)
    earlier = None if run is None else _answer(found, run, is_async, claim, now)
    if earlier is None:
        found.run_id, found.fingerprint, found.refusal, found.created_at = run_id, claim.fingerprint, None, now
    return earlier


def _dead(run: Run, is_async: bool, now: datetime) -> bool:
    return not is_async and run.status in OPEN_RUN and now - run.heartbeat_at > timedelta(seconds=DEAD_AFTER_S)


def _answer(found: IdempotencyKey, run: Run, is_async: bool, claim: Claim, now: datetime) -> Earlier | None:
    """See the module. The request is compared only where an answer, or the promise of one, stands."""
    in_flight = run.status in OPEN_RUN and not is_async
    if not (in_flight or is_async or run.status is RunStatus.SUCCEEDED or found.refusal is not None):
        return None
    if found.fingerprint != claim.fingerprint:
        raise KeyReused
    if in_flight:
        # As long again as it has taken so far: few requests for long runs, and no long wait for short ones.
        age_s = (now - run.created_at).total_seconds()
        raise KeyInFlight(retry_after_s=min(age_s, LONGEST_WAIT_S))
    return Earlier(run_id=run.id, refusal=found.refusal)
