"""Results that are used again: a run whose pictures an earlier run has made, at no cost to any device."""

from common.catalog.database import Database
from common.catalog.idempotency import taken
from common.catalog.ids import new_id
from common.catalog.quotas import billed
from common.catalog.records import Claim, Earlier, NewRun, RunRecord, RunStatus
from common.catalog.rows import run_record, select_runs
from common.catalog.run_rows import row_of_run
from common.catalog.tables import Image, Run
from common.clock import utc_now


class Results:
    """Every method raises CatalogUnavailable when the database cannot be used."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def find(self, result_key: str) -> RunRecord | None:
        """The newest run that succeeded with this key; None when there is none."""
        query = select_runs().where(Run.result_key == result_key, Run.status == RunStatus.SUCCEEDED)
        async with self._db.read() as session:
            run = (await session.scalars(query.order_by(Run.id.desc()).limit(1))).one_or_none()
            return None if run is None else run_record(run)

    async def reuse(self, run: NewRun, source: RunRecord, claim: Claim | None) -> Earlier | None:
        """Record `run` as succeeded with the pictures of `source`, all of it or nothing.

        claim: the idempotency key it came with. Returns: the answer that the key stands for already; then nothing is
        recorded. Raises: KeyReused, KeyInFlight.
        """
        now = utc_now()
        told = {"id": run.id, "created": int(now.timestamp()), "timings": {}, "cached": True, "cached_from": source.id}
        ended = {
            "status": RunStatus.SUCCEEDED,
            "effective": dict(source.effective or {}) | {"cached_from": source.id},
            "timings": {},
            "answer": dict(source.answer or {}) | told,
            "started_at": now,
            "finished_at": now,
        }
        async with self._db.write() as session:
            if claim is not None:
                earlier = await taken(self._db, session, claim, run.id, now)
                if earlier is not None:
                    return earlier
            await self._db.insert_absent(session, Run, [row_of_run(run, now) | ended])
            session.add_all(
                Image(id=new_id("img"), run_id=run.id, index=each.index, sha256=each.sha256, seed=each.seed, created_at=now)
                for each in source.images
            )
            await billed(self._db, session, run.key_id, len(source.images), 0.0, now)
        return None
