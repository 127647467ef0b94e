"""Every row of a catalog out of one database and into another, of whichever kind.

Rows travel as what JSON can say: times as ISO 8601 in UTC, everything else as it is. Tables come in the order of their
references, rows in that of their keys, so that two copies of the same rows are equal, byte for byte once written alike.

A copy is loaded into tables of the revision it was made at, and these are then upgraded: what a migration does to rows is
done to these too.
"""

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.types import TypeEngine

from common.catalog.catalog import Catalog
from common.catalog.columns import FreeText, Json, UtcDateTime
from common.catalog.database import UNREACHABLE, make_engine, parse_url, sqlite_path
from common.catalog.migrate import migrate
from common.catalog.revisions import require_head
from common.catalog.tables import Table
from common.errors import CatalogUnavailable, Conflict

Row = dict[str, Any]
BATCH = 500
"""Rows that are held in memory at once."""


class Kind(StrEnum):
    """What a column holds."""

    TEXT = "text"
    INTEGER = "integer"
    FLOAT = "float"
    TIME = "time"
    JSON = "json"


_TYPES: Mapping[Kind, TypeEngine[Any]] = {
    Kind.TEXT: sa.Text(),
    Kind.INTEGER: sa.BigInteger(),
    Kind.FLOAT: sa.Float(),
    Kind.TIME: UtcDateTime(),
    Kind.JSON: Json(),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """A table as a copy knows it."""

    name: str
    columns: Mapping[str, Kind]


def kind_of(column: sa.Column[Any]) -> Kind:
    """What a column holds. Raises: TypeError: a type that copies do not know."""
    for kind, types in (
        (Kind.TIME, UtcDateTime),
        (Kind.JSON, Json),
        (Kind.INTEGER, sa.Integer),
        (Kind.FLOAT, sa.Float),
        (Kind.TEXT, (sa.String, FreeText)),
    ):
        if isinstance(column.type, types):
            return kind
    raise TypeError(f"{column} is of a type that copies of the catalog do not know: {column.type!r}")


def shapes() -> list[Shape]:
    """All tables of this version, those that others refer to first."""
    return [Shape(each.name, {c.name: kind_of(c) for c in each.columns}) for each in Table.metadata.sorted_tables]


class Snapshot:
    """A catalog as it was at one moment, however long the reading takes and whatever others write meanwhile."""

    def __init__(self, connection: AsyncConnection, revision: str) -> None:
        self._connection = connection
        self.revision = revision

    async def rows(self, shape: Shape) -> AsyncIterator[list[Row]]:
        """The rows of one of `shapes()`, `BATCH` at a time."""
        table = Table.metadata.tables[shape.name]
        found = await self._connection.stream(sa.select(table).order_by(*map(self._sortable, table.primary_key)))
        async for batch in found.mappings().partitions(BATCH):
            yield [{name: _told(kind, row[name]) for name, kind in shape.columns.items()} for row in batch]

    def _sortable(self, column: sa.Column[Any]) -> sa.ColumnElement[Any]:
        # By bytes, as SQLite does it: the languages of PostgreSQL databases differ.
        by_language = kind_of(column) is Kind.TEXT and self._connection.dialect.name == "postgresql"
        return sa.collate(column, "C") if by_language else column


@asynccontextmanager
async def snapshot(url: str) -> AsyncGenerator[Snapshot]:
    """The catalog at `url` as it is now. Others read and write it meanwhile.

    Raises: CatalogUnavailable. SchemaOutdated. InvalidRequest: not the URL of a database this package can use.
    """
    # Says in our words what else may be wrong with a catalog.
    await (await Catalog.open(url)).close()
    parsed = parse_url(url)
    engine = make_engine(parsed, patient=True)
    if parsed.get_backend_name() == "postgresql":
        engine = engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    try:
        async with engine.begin() as connection:
            # The first question makes the snapshot.
            revision = await connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
            require_head(revision)
            yield Snapshot(connection, revision)
    except UNREACHABLE as error:
        raise CatalogUnavailable(f"The catalog cannot be read: {type(error).__name__}.") from error
    finally:
        await engine.dispose()


async def load(url: str, revision: str, tables: Sequence[tuple[Shape, AsyncIterable[Sequence[Row]]]]) -> None:
    """Make a catalog of these rows, in this order, at the database `url`: all of them or none.

    revision: that of the snapshot they are from. The catalog is of this version in the end.
    Raises: CatalogUnavailable. Conflict: there are rows in the database already. SchemaOutdated: they are of a newer version.
    InvalidRequest: not the URL of a database this package can use.
    """
    await _clear(url)
    await migrate(url, revision)
    engine = make_engine(parse_url(url), patient=True).execution_options(writing=True)
    try:
        async with engine.begin() as connection:
            for shape, batches in tables:
                await _fill(connection, shape, batches)
    except UNREACHABLE as error:
        raise CatalogUnavailable(f"The catalog cannot be written: {type(error).__name__}.") from error
    finally:
        await engine.dispose()
    await migrate(url)


async def _fill(connection: AsyncConnection, shape: Shape, batches: AsyncIterable[Sequence[Row]]) -> None:
    table = sa.table(shape.name, *(sa.column(name, _TYPES[kind]) for name, kind in shape.columns.items()))
    async for batch in batches:
        await connection.execute(
            sa.insert(table),
            [{name: _taken(kind, row[name]) for name, kind in shape.columns.items()} for row in batch],
        )
    if connection.dialect.name == "postgresql":
        await _count_on(connection, shape.name)


async def _count_on(connection: AsyncConnection, table: str) -> None:
    """Have a table that numbers its rows itself go on after the highest number."""
    columns = await connection.run_sync(lambda sync: sa.inspect(sync).get_columns(table))
    for each in columns:
        if each.get("autoincrement") is not True:
            continue
        column = sa.column(each["name"], sa.BigInteger())
        sequence = sa.func.pg_get_serial_sequence(table, column.name)
        highest = sa.select(sa.func.coalesce(sa.func.max(column) + 1, 1)).select_from(sa.table(table)).scalar_subquery()
        await connection.execute(sa.select(sa.func.setval(sequence, highest, False)))


async def _clear(url: str) -> None:
    """Drop the tables of a catalog without rows, of whatever version. Raises: Conflict: there are rows."""
    parsed = parse_url(url)
    path = sqlite_path(parsed)
    if path is not None and not path.exists():
        return
    engine = make_engine(parsed, migrating=True)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(_drop_if_empty)
    except UNREACHABLE as error:
        raise CatalogUnavailable(f"The catalog cannot be written: {type(error).__name__}.") from error
    finally:
        await engine.dispose()


def _drop_if_empty(connection: sa.Connection) -> None:
    found = sa.MetaData()
    found.reflect(connection)
    for table in found.sorted_tables:
        if table.name != "alembic_version" and connection.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).first():
            raise Conflict(
                f"There are rows in the database already (table {table.name}). A copy is loaded into a database of its own."
            )
    found.drop_all(connection)


def _told(kind: Kind, value: Any) -> Any:
    return value.isoformat() if kind is Kind.TIME and value is not None else value


def _taken(kind: Kind, value: Any) -> Any:
    return datetime.fromisoformat(value) if kind is Kind.TIME and value is not None else value
