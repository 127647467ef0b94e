"""A caller that leaves in the middle of a transaction."""

import asyncio
import sqlite3
import threading
from pathlib import Path

from sqlalchemy import text

from common.catalog import migrate, sqlite_url
from common.catalog.database import Database, parse_url


async def test_a_cancelled_write_holds_up_nobody_even_while_its_error_is_kept(tmp_path: Path):
    file = tmp_path / "catalog.db"
    await migrate(sqlite_url(file))
    database = Database(parse_url(sqlite_url(file)))
    begun, may_end, loop = asyncio.Event(), threading.Event(), asyncio.get_running_loop()

    def held() -> int:
        loop.call_soon_threadsafe(begun.set)
        may_end.wait()
        return 1

    async def leave() -> None:
        async with database.write() as session:
            connection = await (await session.connection()).get_raw_connection()
            assert connection.driver_connection is not None
            await connection.driver_connection.create_function("held", 0, held)
            # More than one row, so that the statement is not at its end with the first.
            await session.execute(text("SELECT held() UNION ALL SELECT 2"))

    leaving = asyncio.create_task(leave())
    await begun.wait()
    leaving.cancel()
    may_end.set()
    await asyncio.wait({leaving})
    assert leaving.cancelled()

    other = sqlite3.connect(file, isolation_level=None, timeout=0)
    other.execute("BEGIN IMMEDIATE")
    other.close()
    await database.close()
