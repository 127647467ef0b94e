"""How runs end otherwise than by a result: what their attempts are then."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from common.catalog.records import OPEN_ATTEMPT, AttemptStatus
from common.catalog.tables import Attempt

INTERRUPTED = "interrupted"


async def close_attempts(
    session: AsyncSession, run_ids: Sequence[str], status: AttemptStatus, code: str, message: str | None, now: datetime
) -> int:
    """Close the open attempts of runs whose rows are locked. Returns: how many there were."""
    if not run_ids:
        return 0
    closing = (
        update(Attempt)
        .where(Attempt.run_id.in_(run_ids), Attempt.status.in_(OPEN_ATTEMPT))
        .values(status=status, error_code=code, error_message=message, finished_at=now)
        .returning(Attempt.no)
    )
    return len((await session.scalars(closing)).all())
