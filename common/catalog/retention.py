"""Runs that are older than anybody wants to keep: which they are, and their removal.

First they are listed, then removed by that list, so that what is removed can be counted however often a removal that was
broken off is begun again. Runs with a tag stay: somebody has put a word on them.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, delete, exists, func, select

from common.catalog.database import Database
from common.catalog.records import OPEN_RUN
from common.catalog.tables import Asset, AsyncRun, Image, Run, RunInput, RunTag


@dataclass(frozen=True, slots=True)
class OldRuns:
    """Some of those that may go."""

    run_ids: Sequence[str]
    asset_bytes: Mapping[str, int]
    """sha256 of their pictures -> size. Other runs may have some of them too."""


class Retention:
    """Every method raises CatalogUnavailable when the database cannot be used."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def count(self, before: datetime) -> int:
        """How many runs may go."""
        async with self._db.read() as session:
            return await session.scalar(select(func.count()).select_from(Run).where(*_old(before))) or 0

    async def find(self, before: datetime, *, after: str, limit: int) -> OldRuns:
        """The oldest of those that ended before a moment, beyond the run `after` ("" for the first)."""
        query = select(Run.id).where(*_old(before), Run.id > after).order_by(Run.id).limit(limit)
        async with self._db.read() as session:
            run_ids = list(await session.scalars(query))
            pictures = select(Asset.sha256, Asset.size_bytes).join(Image, Image.sha256 == Asset.sha256)
            found = await session.execute(pictures.where(Image.run_id.in_(run_ids)).distinct().order_by(Asset.sha256))
            return OldRuns(run_ids, {row.sha256: row.size_bytes for row in found})

    async def remove(self, before: datetime, runs: OldRuns) -> None:
        """Remove runs of that list, if they still may go, and the rows of pictures that no run has any more."""
        async with self._db.write() as session:
            await session.execute(delete(Run).where(Run.id.in_(runs.run_ids), *_old(before)))
            shown = exists().where(Image.sha256 == Asset.sha256)
            uploaded = exists().where(RunInput.sha256 == Asset.sha256)
            await session.execute(delete(Asset).where(Asset.sha256.in_(list(runs.asset_bytes)), ~shown, ~uploaded))

    async def there(self, run_ids: Collection[str]) -> frozenset[str]:
        """Those of `run_ids` that still have a row."""
        async with self._db.read() as session:
            return frozenset(await session.scalars(select(Run.id).where(Run.id.in_(run_ids))))


def _old(before: datetime) -> tuple[ColumnElement[bool], ...]:
    """Ended before, untagged, and nobody waits for anything of it."""
    tagged = select(RunTag.run_id)
    awaited = select(AsyncRun.run_id).where((AsyncRun.ended_at.is_(None)) | (AsyncRun.webhook_due_at.is_not(None)))
    return (
        Run.finished_at < before,
        Run.status.not_in(OPEN_RUN),
        Run.id.not_in(tagged),
        Run.id.not_in(awaited),
    )
