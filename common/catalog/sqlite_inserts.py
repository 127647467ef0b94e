"""Inserts into SQLite past SQLAlchemy and aiosqlite: what every run costs, at the price of what the database does for it.

aiosqlite goes to its thread and back for each step of a transaction, and SQLAlchemy's session is made for objects that
change: for two rows both together take five times as long as SQLite. Here a transaction is one call. Its statements
are SQLAlchemy's all the same, and what becomes of Python's values is what it makes of them, so a row is the same whoever
wrote it.

It is made where it is asked for, as the way to a thread and back takes as long as SQLite does; by a thread where something
would have to be waited for: another's write, or a disk that was slow just now.

Nor does a commit here wait for the disk, which would be most of its time: it is in the file, where every process sees it and
no process' end can undo it, and the next commit by any other connection flushes all that was written before it. So what is
inserted here is safe from a loss of power before anything that follows from it is: a run before its result, or its failure.
Between the two, power that goes takes the run with the machine that made it; its client was told nothing of it.
"""

import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.engine import URL
from sqlalchemy.types import TypeEngine

from common.catalog.columns import IN_SQLITE, json_text
from common.catalog.own_thread import OwnThread
from common.catalog.tables import Table

Rows = Sequence[Mapping[str, Any]]
"""Column -> value; the same columns in each."""
Insert = tuple[type[Table], Rows]

_dialect = SQLiteDialect_pysqlite(paramstyle="qmark", json_serializer=json_text)


SLOW_S = 0.01
"""So long may what else goes on wait for a write: as for other pauses of this process. SQLite flushes once in some hundred
transactions here, when its log begins anew."""
SLOW_FOR_S = 5.0
"""How long the disk is taken to be slow after a slow write."""


class SqliteInserts:
    """Two connections: the event loop's, which never waits for others, and a thread's."""

    def __init__(self, url: URL, *, busy_timeout_s: float) -> None:
        """busy_timeout_s: how long to wait for another process's write, where `url` does not say it."""
        (file,), told = _dialect.create_connect_args(url)
        self._at_once = _Writer(file, {**told, "timeout": 0.0})
        self._patient = _Writer(file, {"timeout": busy_timeout_s, **told, "check_same_thread": False})
        self._thread = OwnThread("catalog inserts")
        self._slow_until_s = 0.0

    def write_at_once(self, inserts: Sequence[Insert], *, absent: bool = False) -> bool:
        """One transaction, if nothing has to be waited for. absent: only of rows that are not there yet.

        Returns: whether it was made; if not, nothing is left of it.
        """
        began_s = time.monotonic()
        if began_s < self._slow_until_s:
            return False
        try:
            self._at_once.write(inserts, absent=absent)
        except sqlite3.Error:
            # Somebody else is writing; or it is an error, which the thread will meet as well.
            return False
        ended_s = time.monotonic()
        if ended_s - began_s > SLOW_S:
            self._slow_until_s = ended_s + SLOW_FOR_S
        return True

    async def write(self, inserts: Sequence[Insert], *, absent: bool = False) -> None:
        """The same. Cancelled while it is under way, it is committed all the same. Raises: sqlite3.Error."""
        await self._thread.call(partial(self._patient.write, inserts, absent=absent))

    async def close(self) -> None:
        """After what is under way."""
        self._at_once.close()
        await self._thread.call(self._patient.close)
        self._thread.end()


class _Writer:
    """One connection, made when it is first needed and made anew after an error."""

    def __init__(self, file: str, options: Mapping[str, Any]) -> None:
        """options: of `sqlite3.connect`."""
        self._file = file
        self._options = {**options, "isolation_level": None}
        self._connection: sqlite3.Connection | None = None
        self._statements: dict[tuple[str | bool, ...], _Statement] = {}

    def write(self, inserts: Sequence[Insert], *, absent: bool) -> None:
        """One transaction. Raises: sqlite3.Error; then nothing is left of it."""
        prepared = [self._prepared(table, rows, absent) for table, rows in inserts if rows]
        try:
            connection = self._connection = self._connection or self._connected()
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                self.close()
            raise
        try:
            for sql, values in prepared:
                connection.executemany(sql, values)
            connection.execute("COMMIT")
        except BaseException:
            # Which undoes what was begun.
            self.close()
            raise

    def close(self) -> None:
        """Until the next write."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _prepared(self, table: type[Table], rows: Rows, absent: bool) -> tuple[str, list[list[Any]]]:
        kind = (table.__tablename__, absent, *rows[0])
        if kind not in self._statements:
            self._statements[kind] = _Statement(table, list(rows[0]), absent)
        statement = self._statements[kind]
        return statement.sql, [statement.values(row) for row in rows]

    def _connected(self) -> sqlite3.Connection:
        connection: sqlite3.Connection = sqlite3.connect(self._file, **self._options)
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA foreign_keys=ON")
        # What is in the log is copied into the file when others commit, results at the latest: it takes ten milliseconds and
        # a flush, for which whoever comes just then would wait.
        connection.execute("PRAGMA wal_autocheckpoint=0")
        return connection


class _Statement:
    """An insert of one row with these columns."""

    def __init__(self, table: type[Table], columns: list[str], absent: bool) -> None:
        statement = insert(table).on_conflict_do_nothing() if absent else insert(table)
        compiled = statement.compile(dialect=_dialect, column_keys=columns)
        self.sql = str(compiled)
        types = [(name, table.__table__.columns[name].type) for name in compiled.positiontup or ()]
        self._columns = [(name, _converter_of(kind)) for name, kind in types]

    def values(self, row: Mapping[str, Any]) -> list[Any]:
        """In the order of the statement."""
        return [row[name] if convert is None else convert(row[name]) for name, convert in self._columns]


def _converter_of(kind: TypeEngine[Any]) -> Callable[[Any], Any] | None:
    """What makes of a value what is stored; None where that is the value."""
    for own, convert in IN_SQLITE.items():
        if isinstance(kind, own):
            return convert
    return kind.dialect_impl(_dialect).bind_processor(_dialect)
