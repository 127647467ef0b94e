"""Values that all processes of one installation share, made by whoever comes first."""

from collections.abc import Callable

from sqlalchemy import select

from common.catalog.database import Database
from common.catalog.tables import Secret


class Secrets:
    """Every method raises CatalogUnavailable when the database cannot be used."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def get_or_create(self, name: str, make: Callable[[], str]) -> str:
        """The value called `name`; when there is none, `make`'s. All processes get the same, also at the same moment."""
        query = select(Secret.value).where(Secret.name == name)
        async with self._db.read() as session:
            value = await session.scalar(query)
        if value is not None:
            return value
        async with self._db.write() as session:
            await self._db.insert_absent(session, Secret, [{"name": name, "value": make()}])
            # Another process may have been quicker: what stands in the table counts.
            return (await session.scalars(query)).one()
