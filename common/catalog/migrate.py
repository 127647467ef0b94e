"""Bringing a database's tables to the present version. Safe to start in several processes at once: one does it.

Alembic is imported where there is something to upgrade: it takes a tenth of what a router or a node needs to start.
"""

import asyncio
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, text

from common.catalog.database import BUSY_TIMEOUT_S, UNREACHABLE, make_engine, parse_url, revision_of, sqlite_path
from common.catalog.errors import SchemaOutdated
from common.catalog.revisions import FOLDER, head
from common.errors import CatalogUnavailable

if TYPE_CHECKING:
    from alembic.config import Config

LOCK = 0x61_71_75_61_74_69_6E_74
"""PostgreSQL's advisory lock of those who migrate: "aquatint" in ASCII."""


def alembic_config(connection: Connection | None = None) -> "Config":
    """Alembic's configuration; migrations run on `connection`, inside its transaction, when one is given."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


async def migrate(url: str, revision: str = "head") -> None:
    """Create the tables or upgrade them, all or nothing. Creates an SQLite catalog's file and folder.

    revision: where to stop; the newest unless a test asks for an older one.
    Raises: CatalogUnavailable. SchemaOutdated: the database is of a newer version than this code.
    InvalidRequest: not the URL of a database this package can use.
    """
    parsed = parse_url(url)
    engine = make_engine(parsed, migrating=True)
    try:
        path = sqlite_path(parsed)
        if path is not None:
            await asyncio.to_thread(_prepare_file, path)
        # BEGIN IMMEDIATE is SQLite's lock; PostgreSQL's is released with the transaction, whatever happens to us.
        async with engine.begin() as connection:
            if path is None:
                await connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
            upgraded = await connection.run_sync(_upgrade, revision)
            if (
                upgraded
                and path is not None
                and (await connection.execute(text("PRAGMA foreign_key_check"))).first() is not None
            ):
                raise CatalogUnavailable("The upgrade would have broken references between tables; nothing was changed.")
    except (*UNREACHABLE, sqlite3.Error) as error:
        raise CatalogUnavailable(f"The catalog cannot be upgraded: {type(error).__name__}.") from error
    finally:
        await engine.dispose()


def _upgrade(connection: Connection, revision: str) -> bool:
    """Whether there was anything to do. Raises: SchemaOutdated."""
    if revision == "head" and revision_of(connection) == head():
        return False
    from alembic import command
    from alembic.util import CommandError

    try:
        command.upgrade(alembic_config(connection), revision)
    except CommandError as error:
        raise SchemaOutdated(f"The catalog cannot be upgraded by this version of aquatint: {error}") from error
    return True


def _prepare_file(path: Path) -> None:
    """Make the file and set WAL, which stays with the file: readers and the writer then do not wait for each other."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    deadline_s = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            # Changing the mode does not wait for other connections, unlike everything else.
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.05)
        finally:
            connection.close()
