"""What routers have learned of the costs of work at nodes, kept for those that start after them."""

from collections.abc import Sequence
from dataclasses import asdict

from sqlalchemy import select

from common.catalog.database import Database
from common.catalog.records import CostRecord
from common.catalog.tables import Cost, Node

CostRecords = list[CostRecord]
_FIELDS = tuple(CostRecord.__dataclass_fields__)
_KEY = ("node_id", "model", "work", "term", "size")


class Costs:
    """Every method raises CatalogUnavailable when the database cannot be used."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def all(self) -> CostRecords:
        """Everything that is known."""
        async with self._db.read() as session:
            rows = await session.scalars(select(Cost))
            return [CostRecord(**{name: getattr(row, name) for name in _FIELDS}) for row in rows]

    async def keep(self, records: Sequence[CostRecord]) -> None:
        """Write down what was learned. What another router has measured later stays; costs of nodes that are gone are dropped.

        Every router that watches a node learns the same of it, so whose estimate is kept makes no difference but of age.
        """
        if not records:
            return
        async with self._db.write() as session:
            # Locked, or a node that is removed in this moment would take all the others' rows with it.
            nodes = set(await session.scalars(select(Node.id).with_for_update(read=True, key_share=True)))
            rows = [asdict(record) for record in records if record.node_id in nodes]
            await self._db.replace_older(session, Cost, rows, key=_KEY, age="measured_at")
