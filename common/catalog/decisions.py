"""Why routers sent runs where they sent them."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select

from common.catalog.database import Database
from common.catalog.runs import Runs
from common.catalog.tables import Decision, Run

Told = dict[str, Any]


class Decisions:
    """Every method raises CatalogUnavailable when the database cannot be used."""

    def __init__(self, database: Database, runs: Runs) -> None:
        """runs: those that are being recorded."""
        self._db = database
        self._runs = runs

    async def add(self, decisions: Mapping[tuple[str, int], Told]) -> None:
        """Write down decisions, by run id and attempt. Those of runs that are gone are dropped."""
        if not decisions:
            return
        await self._runs.settled()
        async with self._db.write() as session:
            asked = {run_id for run_id, _ in decisions}
            # Locked, or a run that is removed in this moment would take all the others' rows with it.
            found = select(Run.id).where(Run.id.in_(asked)).with_for_update(read=True, key_share=True)
            runs = set(await session.scalars(found))
            rows = [{"run_id": run, "attempt": no, "told": told} for (run, no), told in decisions.items() if run in runs]
            await self._db.insert_absent(session, Decision, rows)

    async def of(self, run_id: str) -> Sequence[Told]:
        """Of one run, by attempt."""
        async with self._db.read() as session:
            query = select(Decision.told).where(Decision.run_id == run_id).order_by(Decision.attempt)
            return list(await session.scalars(query))
