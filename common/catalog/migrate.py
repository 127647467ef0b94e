"""Bringing a database's tables to the present version. Safe to start in several processes at once: one does it."""

import asyncio
import sqlite3
import time
from functools import cache
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, text

from common.catalog.database import BUSY_TIMEOUT_S, UNREACHABLE, make_engine, parse_url, sqlite_path
from common.catalog.errors import SchemaOutdated
from common.errors import CatalogUnavailable

FOLDER = Path(__file__).parent / "migrations"
UPGRADE = "Run `aquatint db upgrade`."
LOCK = 0x61_71_75_61_74_69_6E_74
"""PostgreSQL's advisory lock of those who migrate: "aquatint" in ASCII."""


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration; migrations run on `connection`, inside its transaction, when one is given."""
    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


@cache
def _scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(alembic_config())


def head() -> str:
    """The revision this version of the code needs."""
    revision = _scripts().get_current_head()
    assert revision is not None
    return revision


def knows(revision: str) -> bool:
    """Whether this version of the code has the revision."""
    try:
        return _scripts().get_revision(revision) is not None
    except CommandError:
        return False


def require_head(revision: str | None) -> None:
    """Raises: SchemaOutdated: tables of this revision are not those that this version of the code needs."""
    if revision == head():
        return
    if revision is not None and not knows(revision):
        raise SchemaOutdated(f"The catalog was upgraded by a newer version of aquatint (to {revision}); install that.")
    raise SchemaOutdated(f"The catalog's tables are of an older version ({revision or 'none'}). {UPGRADE}")


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
            await connection.run_sync(lambda sync: command.upgrade(alembic_config(sync), revision))
            if path is not None and (await connection.execute(text("PRAGMA foreign_key_check"))).first() is not None:
                raise CatalogUnavailable("The upgrade would have broken references between tables; nothing was changed.")
    except CommandError as error:
        raise SchemaOutdated(f"The catalog cannot be upgraded by this version of aquatint: {error}") from error
    except (*UNREACHABLE, sqlite3.Error) as error:
        raise CatalogUnavailable(f"The catalog cannot be upgraded: {type(error).__name__}.") from error
    finally:
        await engine.dispose()


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
