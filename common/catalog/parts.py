"""Runs made in parts: one request's pictures, by several nodes at once.

The request's own run, the whole, has no attempt; each part is a run with attempts, pictures and a recipe of its own, named
after the whole so that parts sort in the order of their pictures. The whole succeeds when all its parts have, in one
transaction, and is what is billed; when it ends otherwise, its open parts end with it, which fences them. It is made in
parts once at most: carried again, it is one run like any other.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from common.catalog.database import Database
from common.catalog.errors import AttemptFenced
from common.catalog.quotas import billed, gpu_seconds
from common.catalog.records import OPEN_RUN, AttemptStatus, RunStatus
from common.catalog.run_ends import close_attempts
from common.catalog.tables import Run
from common.clock import utc_now
from common.errors import NotFound


def part_id(run_id: str, index: int) -> str:
    """The id of a run's part. index: 0..9."""
    return f"{run_id}_{index}"


class Parts:
    """Every method raises CatalogUnavailable when the database cannot be used."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def join(
        self, run_id: str, *, effective: Mapping[str, Any], timings: Mapping[str, float], answer: Mapping[str, Any]
    ) -> None:
        """Record that a run has all the pictures of its parts.

        Raises: NotFound. AttemptFenced: the run has ended or is made as one by now, or a part has not succeeded.
        """
        now = utc_now()
        async with self._db.write() as session:
            run = await session.get(Run, run_id, with_for_update=True)
            if run is None:
                raise NotFound(f"There is no run {run_id!r}.", code="run_not_found")
            if run.status not in OPEN_RUN or run.current_attempt:
                raise AttemptFenced(f"Run {run_id} is {run.status.value}, with {run.current_attempt} attempts of its own.")
            parts = list(await session.scalars(select(Run).where(Run.parent_id == run_id)))
            if any(part.status is not RunStatus.SUCCEEDED for part in parts) or sum(part.n for part in parts) != run.n:
                raise AttemptFenced(f"The parts of run {run_id} have not all succeeded.")
            run.status = RunStatus.SUCCEEDED
            run.effective, run.timings, run.answer = dict(effective), dict(timings), dict(answer)
            run.started_at = min(part.started_at or now for part in parts)
            run.heartbeat_at = run.finished_at = now
            await billed(self._db, session, run.key_id, run.n, sum(gpu_seconds(part.timings or {}) for part in parts), now)


async def end_parts(
    session: AsyncSession, run_ids: Sequence[str], ends: tuple[RunStatus, AttemptStatus], code: str, message: str, now: datetime
) -> None:
    """End the open parts of runs whose rows are locked, as those end. ends: of the parts, and of their open attempts."""
    status, attempts = ends
    values = {"status": status, "error_code": code, "error_message": message, "finished_at": now}
    ending = update(Run).where(Run.parent_id.in_(run_ids), Run.status.in_(OPEN_RUN)).values(values).returning(Run.id)
    await close_attempts(session, list(await session.scalars(ending)), attempts, code, message, now)
