"""Inserts past SQLAlchemy write what SQLAlchemy's session writes, and take their turn with other writers."""

import asyncio
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import text

from common.catalog import Catalog, NewRun, migrate, sqlite_url
from common.catalog.run_rows import row_of_run
from common.catalog.sqlite_inserts import Insert
from common.catalog.tables import Run
from common.clock import utc_now
from common.errors import CatalogUnavailable

SLOW = """
CREATE TRIGGER slow BEFORE INSERT ON runs BEGIN
  SELECT count(*) FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000) SELECT i FROM n);
END"""
"""Takes SQLite a tenth of a second."""

MakeRun = Callable[..., NewRun]


@pytest.fixture
async def file(tmp_path: Path) -> Path:
    """A catalog's file, with its tables."""
    await migrate(sqlite_url(tmp_path / "catalog.db"))
    return tmp_path / "catalog.db"


async def test_a_row_is_the_same_whichever_way_it_was_written(file: Path, new_run: MakeRun):
    catalog = await Catalog.open(sqlite_url(file))
    one = new_run()._replace(prompt="a \x00 cat\ud800", request={"prompt": "a \x00", "scale": float("nan")})
    other = one._replace(id=new_run().id)

    await catalog.runs.open(one)
    await catalog.runs.open_new(other, first_node=None)
    await catalog.close()

    connection = sqlite3.connect(file)
    rows = connection.execute("SELECT * FROM runs ORDER BY id").fetchall()
    columns = [name for _, name, *_ in connection.execute("PRAGMA table_info(runs)")]
    connection.close()
    differs = {name for name, mine, theirs in zip(columns, *rows, strict=True) if mine != theirs}
    assert differs <= {"id", "created_at", "heartbeat_at"}
    assert [type(value) for value in rows[0]] == [type(value) for value in rows[1]]


async def test_a_writer_that_another_process_keeps_waiting_says_so_and_goes_on_afterwards(file: Path, new_run: MakeRun):
    catalog = await Catalog.open(f"{sqlite_url(file)}?timeout=0.1")
    holder = sqlite3.connect(file, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")

    with pytest.raises(CatalogUnavailable):
        await catalog.runs.open_new(new_run(), first_node="a")
    holder.execute("ROLLBACK")
    run = new_run()
    await catalog.runs.open_new(run, first_node="a")

    assert [each.no for each in (await catalog.runs.get(run.id)).attempts] == [1]
    holder.close()
    await catalog.close()


async def test_nothing_else_waits_while_another_process_keeps_a_write_waiting(file: Path, new_run: MakeRun):
    catalog = await Catalog.open(sqlite_url(file))
    await catalog.runs.open_new(new_run(), first_node="a")
    holder = sqlite3.connect(file, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    run = new_run()

    writing = asyncio.create_task(catalog.runs.open_new(run, first_node="a"))
    for _ in range(100):  # Were the loop to wait with it, this would not come to its end before the write gave up.
        await asyncio.sleep(0)
    assert not writing.done()
    holder.execute("ROLLBACK")
    await writing

    assert [each.no for each in (await catalog.runs.get(run.id)).attempts] == [1]
    holder.close()
    await catalog.close()


async def test_a_disk_that_was_slow_is_waited_for_by_a_thread(file: Path, new_run: MakeRun):
    catalog = await Catalog.open(sqlite_url(file))
    inserts = catalog.runs._db._inserts
    assert inserts is not None

    def row() -> Insert:
        return Run, [row_of_run(new_run(), utc_now()) | {"current_attempt": 0}]

    maker = sqlite3.connect(file)
    maker.executescript(SLOW)
    slow_was_made = inserts.write_at_once([row()])
    after_that = inserts.write_at_once([row()])
    maker.executescript("DROP TRIGGER slow")
    run = new_run()
    await catalog.runs.open_new(run, first_node="a")

    assert (slow_was_made, after_that) == (True, False)
    assert maker.execute("SELECT count(*) FROM runs").fetchone() == (2,)
    maker.close()
    await catalog.close()


async def test_of_a_transaction_that_fails_nothing_is_left_and_the_next_is_written(file: Path, new_run: MakeRun):
    catalog = await Catalog.open(sqlite_url(file))
    run, again = new_run(), new_run()
    await catalog.runs.open_new(run, first_node="a")

    # Two in one group, the second of them there already.
    results = await asyncio.gather(
        catalog.runs.open_new(again, first_node="a"), catalog.runs.open_new(run, first_node="a"), return_exceptions=True
    )
    assert [type(result) for result in results] == [CatalogUnavailable, CatalogUnavailable]
    await catalog.runs.open_new(again, first_node="b")

    assert [each.node for each in (await catalog.runs.get(again.id)).attempts] == ["b"]
    await catalog.close()


async def test_only_inserts_that_wait_for_their_result_leave_the_flush_to_the_next_commit(file: Path, new_run: MakeRun):
    normal, full = 1, 2  # Of SQLite's `PRAGMA synchronous`; in WAL, NORMAL writes at once and flushes with the next FULL.
    catalog = await Catalog.open(sqlite_url(file))
    await catalog.runs.open_new(new_run(), first_node=None)
    inserts = catalog.runs._db._inserts
    assert inserts is not None
    await inserts.write([(Run, [row_of_run(new_run(), utc_now()) | {"current_attempt": 0}])])
    at_once, patient = inserts._at_once._connection, inserts._patient._connection
    assert at_once is not None
    assert patient is not None

    for connection in (at_once, patient):
        assert connection.execute("PRAGMA synchronous").fetchone() == (normal,)
    async with catalog.runs._db.write() as session:
        assert (await session.execute(text("PRAGMA synchronous"))).scalar_one() == full
        assert (await session.execute(text("PRAGMA journal_mode"))).scalar_one() == "wal"
    await catalog.close()


async def test_the_log_is_copied_into_the_file_by_others_than_those_whom_a_client_waits_for(file: Path, new_run: MakeRun):
    catalog = await Catalog.open(sqlite_url(file))
    for _ in range(400):  # Each writes a dozen pages; SQLite copies after a thousand by itself.
        await catalog.runs.open_new(new_run(), first_node="a")
    log = file.with_name("catalog.db-wal")
    left_to_grow = log.stat().st_size

    await catalog.runs.cancel((await catalog.runs.list(limit=1))[0].id, reason="left")
    copied = log.stat().st_size
    for _ in range(20):
        await catalog.runs.open_new(new_run(), first_node="a")

    assert left_to_grow > 2 * 1000 * 4096
    assert log.stat().st_size == copied  # Begun anew from its beginning.
    await catalog.close()
