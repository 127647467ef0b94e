"""Engine, transactions, and the one place where a database's troubles become CatalogUnavailable."""

import asyncio
import sqlite3
import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import asyncpg
from sqlalchemy import Connection, event, exc, insert, inspect, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from common.catalog.columns import json_text
from common.catalog.sqlite_inserts import Insert, SqliteInserts
from common.catalog.tables import Table
from common.clock import clock
from common.errors import CatalogUnavailable, InvalidRequest
from common.logs import get_logger

log = get_logger(__name__)

PING_TIMEOUT_S = 2.0
CONNECT_TIMEOUT_S = 2.0
STATEMENT_TIMEOUT_S = 4.0
BUSY_TIMEOUT_S = 5.0
"""How long a writer waits for another process's write on SQLite."""
TRANSACTION_TIMEOUT_S = 5.0
"""How long a caller waits at most, whatever hangs; on SQLite this comes on top of the wait for the lock."""
STOPPED_AFTER_S = 6.0
"""A transaction that nothing is heard of for longer than its caller can wait belongs to a process that was stopped, or cut
off: PostgreSQL ends it, or the rows it holds, a key's usage among them, would be locked for everyone."""

UNREACHABLE = (
    exc.DBAPIError,
    sqlite3.Error,
    exc.TimeoutError,
    exc.PendingRollbackError,
    # Raised bare while connecting, before SQLAlchemy can wrap them.
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    OSError,
    TimeoutError,
)

ROWS_AT_ONCE = 500
"""In one statement: databases bound the values of one."""


def sqlite_url(path: Path) -> str:
    """The URL of the SQLite catalog in the file `path`."""
    return f"sqlite+aiosqlite:///{path}"


def parse_url(url: str) -> URL:
    """`url` with the driver this package uses, so that plain `postgresql://` and `sqlite:///` work too.

    Raises: InvalidRequest: another kind of database, or SQLite in memory, which no second process could see.
    """
    try:
        parsed = make_url(url)
    except exc.ArgumentError as error:
        raise InvalidRequest("The catalog's address is not a database URL.") from error
    kind = parsed.drivername.partition("+")[0]
    if kind in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+asyncpg")
    if kind == "sqlite" and parsed.database not in (None, "", ":memory:"):
        return parsed.set(drivername="sqlite+aiosqlite")
    raise InvalidRequest(f"The catalog can be a PostgreSQL database or an SQLite file, not {kind!r}.")


def sqlite_path(url: URL) -> Path | None:
    """The file of an SQLite catalog; None on PostgreSQL."""
    if url.get_backend_name() != "sqlite" or url.database is None:
        return None
    return Path(url.database.removeprefix("file:"))


def revision_of(connection: Connection) -> str | None:
    """The migration the tables are at; None when there are none."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return revision


def make_engine(url: URL, *, migrating: bool = False, patient: bool = False) -> AsyncEngine:
    """An engine for `url`. migrating: SQLite's tables may be rebuilt. Then, or when patient, statements may take any time."""
    if url.get_backend_name() == "sqlite":
        return _sqlite_engine(url, migrating=migrating)
    patient = patient or migrating
    timeout_ms = 0 if patient else round(STATEMENT_TIMEOUT_S * 1000)
    return create_async_engine(
        url,
        pool_pre_ping=True,
        pool_size=5,
        max_overflow=15,
        pool_timeout=TRANSACTION_TIMEOUT_S,
        hide_parameters=True,
        json_serializer=json_text,
        connect_args={
            "timeout": CONNECT_TIMEOUT_S,
            "command_timeout": None if patient else STATEMENT_TIMEOUT_S,
            "server_settings": {
                "application_name": "aquatint",
                "statement_timeout": str(timeout_ms),
                "idle_in_transaction_session_timeout": str(60_000 if migrating else round(STOPPED_AFTER_S * 1000)),
            },
        },
    )


def _sqlite_engine(url: URL, *, migrating: bool) -> AsyncEngine:
    # isolation_level None: sqlite3 would else begin transactions by itself, late and without IMMEDIATE.
    connect_args: dict[str, Any] = {"isolation_level": None}
    if "timeout" not in url.query:
        connect_args["timeout"] = BUSY_TIMEOUT_S
    engine = create_async_engine(
        url,
        pool_timeout=TRANSACTION_TIMEOUT_S,
        hide_parameters=True,
        json_serializer=json_text,
        connect_args=connect_args,
    )

    @event.listens_for(engine.sync_engine, "connect")
    def set_pragmas(connection: Any, _: object) -> None:
        cursor = connection.cursor()
        # FULL: with WAL the default of NORMAL may lose the last commits when the power goes.
        cursor.execute("PRAGMA synchronous=FULL")
        # Rebuilding a table drops the old one, which would cascade to every row that refers to it.
        cursor.execute(f"PRAGMA foreign_keys={'OFF' if migrating else 'ON'}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin(connection: Any) -> None:
        # A transaction that reads first and writes later fails at once when another process wrote in between;
        # IMMEDIATE takes the lock at the beginning, where waiting for it is possible.
        writing = migrating or connection.get_execution_options().get("writing", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")

    @event.listens_for(engine.sync_engine, "invalidate")
    def undo(connection: Any, _: object, error: BaseException | None) -> None:
        # A call that was cancelled has its connection closed. But SQLite holds the lock of a closed connection as long as one
        # of its statements is there, and the traceback of the cancel may keep one for as long as somebody keeps that.
        try:
            connection.run_async(lambda driver: asyncio.shield(driver.rollback()))
        except asyncio.CancelledError:
            # Undone all the same. Where the first was no cancel this one is news.
            if not isinstance(error, asyncio.CancelledError):
                raise
        except (sqlite3.Error, ValueError) as failure:
            log.debug("transaction_not_undone", error=type(failure).__name__)

    return engine


class Database:
    """Transactions. Everything in this package that touches the database goes through `read` and `write`."""

    def __init__(self, url: URL) -> None:
        self._engine = make_engine(url)
        self._readers = async_sessionmaker(self._engine, expire_on_commit=False)
        self._writers = async_sessionmaker(self._engine.execution_options(writing=True), expire_on_commit=False)
        self._is_sqlite = url.get_backend_name() == "sqlite"
        # SQLite waits for its lock by polling, which is unfair; the writers of this process queue here instead.
        self._lock = asyncio.Lock()
        self._turn: asyncio.Lock | nullcontext[None] = self._lock if self._is_sqlite else nullcontext()
        self._timeout_s = TRANSACTION_TIMEOUT_S + (BUSY_TIMEOUT_S if self._is_sqlite else 0)
        self._inserts = SqliteInserts(url, busy_timeout_s=BUSY_TIMEOUT_S) if self._is_sqlite else None
        self._stray: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def read(self) -> AsyncGenerator[AsyncSession]:
        """A transaction that only reads. Raises: CatalogUnavailable."""
        async with _Guarded(self._timeout_s), self._readers.begin() as session:
            yield session

    @asynccontextmanager
    async def write(self) -> AsyncGenerator[AsyncSession]:
        """A transaction, committed when the block ends and undone when it raises. Raises: CatalogUnavailable.

        When the connection breaks during the commit itself, nobody knows whether it happened.
        """
        async with _Guarded(self._timeout_s), self._turn, self._writers.begin() as session:
            yield session

    async def ping(self) -> None:
        """Ask the database something small. Raises: CatalogUnavailable, after 2 s at the latest."""
        task = asyncio.create_task(self._ask())
        try:
            done, _ = await asyncio.wait({task}, timeout=PING_TIMEOUT_S)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not done:
            # Not awaited: taking leave of a server that hangs may take longer than the caller was promised.
            task.cancel()
            self._stray.add(task)
            task.add_done_callback(self._forget)
            raise CatalogUnavailable
        task.result()

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._stray.discard(task)
        if not task.cancelled():
            task.exception()  # looked at, so that asyncio does not report it as overlooked

    async def _ask(self) -> None:
        async with self.read() as session:
            await session.execute(text("SELECT version_num FROM alembic_version"))

    async def agree_on_time(self) -> None:
        """Have this process take the present from the database; on SQLite, from the machine. Raises: CatalogUnavailable."""
        if self._is_sqlite:
            clock.stand_alone()
            return
        async with self.read() as session:
            await session.connection()  # Made, and looked at, before the time counts.
            asked_s = time.monotonic()
            told = await session.scalar(text("SELECT clock_timestamp()"))
        assert isinstance(told, datetime)
        clock.agree(told, asked_s=asked_s)

    async def revision(self) -> str | None:
        """The migration the tables are at; None when there are none. Raises: CatalogUnavailable."""
        async with self.read() as session:
            return await (await session.connection()).run_sync(revision_of)

    async def close(self) -> None:
        """Close all connections."""
        if self._stray:
            await asyncio.wait(self._stray, timeout=PING_TIMEOUT_S)
        if self._inserts is not None:
            await self._inserts.close()
        await self._engine.dispose()

    async def insert_absent(self, session: AsyncSession, table: type[Table], rows: Iterable[Mapping[str, Any]]) -> None:
        """Insert those rows whose key, or another unique value, is not there yet. All have the same columns."""
        rows = list(rows)
        if not rows:
            return
        make = sqlite.insert if self._is_sqlite else postgresql.insert
        connection = await session.connection()
        # The rows beside the statement and not in it: it is the same however many they are, so it is built once.
        await connection.execute(make(table).on_conflict_do_nothing(), rows)

    async def replace_older(
        self, session: AsyncSession, table: type[Table], rows: Sequence[Mapping[str, Any]], *, key: Sequence[str], age: str
    ) -> None:
        """Insert rows, or overwrite those of the same `key` whose `age`, a time, is earlier. No key comes twice in `rows`."""
        make = sqlite.insert if self._is_sqlite else postgresql.insert
        for first in range(0, len(rows), ROWS_AT_ONCE):
            new = make(table).values(rows[first : first + ROWS_AT_ONCE])
            changed = {name: new.excluded[name] for name in rows[0] if name not in key}
            older = table.__table__.c[age] < new.excluded[age]
            await session.execute(new.on_conflict_do_update(index_elements=list(key), set_=changed, where=older))

    @property
    def may_insert_at_once(self) -> bool:
        """Whether `insert_at_once` ever does it."""
        return self._inserts is not None

    def insert_at_once(self, inserts: Sequence[Insert], *, absent: bool = False) -> bool:
        """The same as `insert_all`, where nothing has to be waited for. Returns: whether it was done; if not, nothing was."""
        return self._inserts is not None and not self._lock.locked() and self._inserts.write_at_once(inserts, absent=absent)

    async def insert_all(self, inserts: Sequence[Insert], *, absent: bool = False) -> None:
        """Insert rows into several tables, in a transaction of their own. absent: as `insert_absent`. Raises as `write`."""
        if self._inserts is not None:
            async with _Guarded(self._timeout_s), self._turn:
                await self._inserts.write(inserts, absent=absent)
            return
        async with self.write() as session:
            connection = await session.connection()
            for table, rows in inserts:
                if absent:
                    await self.insert_absent(session, table, rows)
                elif rows:
                    await connection.execute(insert(table), rows)


class _Guarded:
    """Around what is asked of the database: it takes no longer than that, and what it raises is of our errors."""

    def __init__(self, timeout_s: float) -> None:
        self._limit = asyncio.timeout(timeout_s)

    async def __aenter__(self) -> None:
        await self._limit.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._limit.__aexit__(kind, error, trace)
        except TimeoutError as late:
            error = late
        if isinstance(error, (exc.DataError, sqlite3.DataError)):
            raise InvalidRequest("The catalog cannot hold a value of this request.") from error
        if isinstance(error, UNREACHABLE):
            cause = error.orig if isinstance(error, exc.DBAPIError) else error
            # Only its kind: the text of an error may quote the prompt.
            log.warning("catalog_unavailable", error=type(error).__name__, cause=type(cause).__name__)
            raise CatalogUnavailable from error
