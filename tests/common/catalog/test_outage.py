"""When the database is away callers learn it soon and in our own words, and go on by themselves when it is back."""

import asyncio
import shutil
import signal
import sqlite3
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from common.catalog import Catalog, NewRun, migrate
from common.catalog.database import parse_url, sqlite_path
from common.errors import CatalogUnavailable
from tests.conftest import start_postgres

PROMPTLY_S = 8.0
"""5 s as promised, and room for a slow machine."""


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[Any]:
    """A server of these tests' own, to be stopped and started at will."""
    folder = Path(tempfile.mkdtemp(prefix="aquatint-outage-"))
    server = start_postgres(folder / "data")
    yield server
    server.stop()
    shutil.rmtree(folder, ignore_errors=True)


def everything(catalog: Catalog, run: NewRun) -> list[Callable[[], Awaitable[object]]]:
    return [
        catalog.ping,
        lambda: catalog.runs.open(run),
        lambda: catalog.runs.get(run.id),
        lambda: catalog.runs.begin_attempt(run.id, node="left"),
        lambda: catalog.keys.authenticate("aq_something"),
        lambda: catalog.nodes.list(),
        lambda: catalog.models.aliases(),
        lambda: catalog.secrets.get_or_create("x", lambda: "y"),
    ]


async def seconds_until_refused(asking: Callable[[], Awaitable[object]]) -> float:
    began_s = time.monotonic()
    with pytest.raises(CatalogUnavailable):
        await asking()
    return time.monotonic() - began_s


async def test_a_stopped_postgres_is_told_at_once_and_a_restarted_one_is_used_again(
    own_postgres: Any, new_run: Callable[..., NewRun]
):
    await migrate(own_postgres.get_uri())
    catalog = await Catalog.open(own_postgres.get_uri())
    run = new_run()
    await catalog.runs.open(run)

    own_postgres.stop()
    waits_s = [await seconds_until_refused(asking) for asking in everything(catalog, run)]
    with pytest.raises(CatalogUnavailable):
        await Catalog.open(own_postgres.get_uri())
    with pytest.raises(CatalogUnavailable):
        await migrate(own_postgres.get_uri())
    own_postgres.ensure_postgres_running()

    assert max(waits_s) < PROMPTLY_S
    await catalog.ping()
    assert (await catalog.runs.get(run.id)).id == run.id
    await catalog.close()


async def test_a_postgres_that_hangs_is_given_up_in_time(own_postgres: Any, new_run: Callable[..., NewRun]):
    await migrate(own_postgres.get_uri())
    catalog = await Catalog.open(own_postgres.get_uri())
    run = new_run()
    await catalog.runs.open(run)
    main = psutil.Process(own_postgres.get_pid())
    stopped = [main, *main.children(recursive=True)]

    for process in stopped:
        process.send_signal(signal.SIGSTOP)
    try:
        ping_s = await seconds_until_refused(catalog.ping)
        get_s = await seconds_until_refused(lambda: catalog.runs.get(run.id))
    finally:
        for process in stopped:
            process.send_signal(signal.SIGCONT)

    assert ping_s < 3
    assert get_s < PROMPTLY_S
    await catalog.ping()
    assert (await catalog.runs.get(run.id)).id == run.id
    await catalog.close()


async def test_an_sqlite_file_that_another_process_keeps_locked_is_unavailable_until_it_lets_go(
    sqlite_catalog_url: str, new_run: Callable[..., NewRun]
):
    catalog = await Catalog.open(sqlite_catalog_url + "?timeout=0.2")
    run = new_run()
    path = sqlite_path(parse_url(sqlite_catalog_url))
    assert path is not None
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    waits_s = await asyncio.gather(*(seconds_until_refused(lambda: catalog.runs.open(new_run())) for _ in range(3)))
    assert await catalog.runs.list() == []
    other.execute("ROLLBACK")
    other.close()
    await catalog.runs.open(run)

    assert max(waits_s) < PROMPTLY_S
    assert (await catalog.runs.get(run.id)).id == run.id
    await catalog.close()


async def test_a_locked_file_delays_no_key_check_for_ever(sqlite_catalog_url: str):
    catalog = await Catalog.open(sqlite_catalog_url + "?timeout=0.2")
    _, secret = await catalog.keys.create(name="laptop", scopes={"user"})
    other = sqlite3.connect(str(sqlite_path(parse_url(sqlite_catalog_url))), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    # Its last use cannot be written down, which is no reason to keep anybody out.
    assert await catalog.keys.authenticate(secret) is not None

    other.execute("ROLLBACK")
    other.close()
    await catalog.close()


async def test_a_catalog_that_can_only_be_read_refuses_writes_as_unavailable(
    sqlite_catalog_url: str, new_run: Callable[..., NewRun]
):
    path = sqlite_path(parse_url(sqlite_catalog_url))
    catalog = await Catalog.open(f"sqlite:///file:{path}?mode=ro&uri=true")

    assert await catalog.runs.list() == []
    await seconds_until_refused(lambda: catalog.runs.open(new_run()))

    await catalog.close()


async def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path):
    (tmp_path / "catalog.db").write_bytes(b"this is not a database" * 1000)

    for asking in (
        lambda: Catalog.open(f"sqlite:///{tmp_path}/catalog.db"),
        lambda: migrate(f"sqlite:///{tmp_path}/catalog.db"),
    ):
        with pytest.raises(CatalogUnavailable):
            await asking()
