"""The tables' history: from nothing, step by step, from several processes at once."""

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from common.catalog import Catalog, SchemaOutdated, migrate, sqlite_url
from common.catalog.database import make_engine, parse_url, sqlite_path
from common.catalog.migrate import alembic_config
from common.catalog.revisions import revisions
from common.catalog.tables import Table
from common.errors import CatalogUnavailable, InvalidRequest

REVISIONS = [script.revision for script in ScriptDirectory.from_config(alembic_config()).walk_revisions()][::-1]


async def on_connection(url: str, ask: Any) -> Any:
    engine = make_engine(parse_url(url), migrating=True)
    try:
        async with engine.begin() as connection:
            return await connection.run_sync(ask)
    finally:
        await engine.dispose()


def test_files_of_migrations_are_named_in_the_order_that_alembic_runs_them_in():
    assert list(revisions()) == REVISIONS


def difference(connection: Connection) -> list[Any]:
    return list(compare_metadata(MigrationContext.configure(connection), Table.metadata))


def constraints(connection: Connection) -> dict[str, list[Any]]:
    found = inspect(connection)
    return {
        table: sorted(str(each["name"]) for each in found.get_check_constraints(table))
        + sorted(str(each["name"]) for each in found.get_foreign_keys(table))
        + sorted(str(each["name"]) for each in found.get_indexes(table))
        for table in Table.metadata.tables
    }


async def test_migrating_an_empty_database_gives_the_tables_of_the_models(empty_database_url: str):
    await migrate(empty_database_url)

    assert await on_connection(empty_database_url, difference) == []
    migrated = await on_connection(empty_database_url, constraints)

    def from_models(connection: Connection) -> dict[str, list[Any]]:
        Table.metadata.drop_all(connection)
        Table.metadata.create_all(connection)
        return constraints(connection)

    assert migrated == await on_connection(empty_database_url, from_models)
    assert any(migrated.values()), "the comparison found nothing to compare"


@pytest.mark.parametrize("revision", REVISIONS)
async def test_each_migration_starts_from_the_one_before(revision: str, empty_database_url: str):
    before = REVISIONS[: REVISIONS.index(revision)]
    if before:
        await migrate(empty_database_url, before[-1])

    await migrate(empty_database_url, revision)

    at = await on_connection(empty_database_url, lambda c: MigrationContext.configure(c).get_current_revision())
    assert at == revision


OF_LONG_AGO = (
    """
    INSERT INTO runs (id, status, task, model, prompt, request, request_id, source, n, current_attempt,
        created_at, heartbeat_at)
    VALUES ('run_1', 'queued', 'edit', 'm', 'p', '{}', 'r', 'router', 1, 2, '2026-01-01 00:00:00', '2026-01-01 00:00:00')
    """,
    """
    INSERT INTO attempts (run_id, no, node, status, created_at)
    VALUES ('run_1', 1, 'a', 'failed', '2026-01-01 00:00:00'), ('run_1', 2, 'b', 'sent', '2026-01-01 00:00:00')
    """,
)


async def test_attempts_outlive_the_making_anew_of_their_table(empty_database_url: str):
    await migrate(empty_database_url, "0013")
    for statement in OF_LONG_AGO:
        await on_connection(empty_database_url, lambda connection, sql=statement: connection.exec_driver_sql(sql))

    await migrate(empty_database_url)

    catalog = await Catalog.open(empty_database_url)
    run = await catalog.runs.get("run_1")
    await catalog.close()
    assert [(each.no, each.node, each.status) for each in run.attempts] == [(1, "a", "failed"), (2, "b", "sent")]


async def test_migrating_again_changes_nothing(catalog_url: str):
    await migrate(catalog_url)

    assert await on_connection(catalog_url, difference) == []


MIGRATE = """
import asyncio, sys
from common.catalog import Catalog, migrate
async def start(url):
    await migrate(url)
    await (await Catalog.open(url)).close()
asyncio.run(start(sys.argv[1]))
print("alembic" in sys.modules)
"""


async def test_a_start_that_has_nothing_to_upgrade_loads_no_alembic(
    sqlite_catalog_url: str, tmp_path: Path, child_environment: dict[str, str]
):
    loaded = []
    for url in (sqlite_catalog_url, sqlite_url(tmp_path / "new.db")):
        command = [sys.executable, "-c", MIGRATE, url]
        child = await asyncio.to_thread(
            subprocess.run, command, env=child_environment, capture_output=True, text=True, timeout=60
        )
        assert child.returncode == 0, child.stderr
        loaded.append(child.stdout.strip())

    assert loaded == ["False", "True"]


MIGRATE_IN_FOUR = """
import asyncio, os, sys
from common.catalog import migrate
first = os.fork()
second = os.fork()
asyncio.run(migrate(sys.argv[1]))
mine = [child for child in (first, second) if child] if second else []
sys.exit(any(os.waitpid(child, 0)[1] for child in mine))
"""
"""Two forks, one after the other, are four processes."""


async def test_processes_that_migrate_at_once_do_not_disturb_each_other(
    empty_database_url: str, child_environment: dict[str, str]
):
    command = [sys.executable, "-c", MIGRATE_IN_FOUR, empty_database_url]
    child = await asyncio.to_thread(subprocess.run, command, env=child_environment, capture_output=True, text=True, timeout=60)

    assert (child.returncode, child.stderr) == (0, "")
    await (await Catalog.open(empty_database_url)).close()


async def test_a_catalog_that_was_never_migrated_says_what_to_do_and_stays_empty(empty_database_url: str):
    with pytest.raises(SchemaOutdated, match="aquatint db upgrade"):
        await Catalog.open(empty_database_url)

    path = sqlite_path(parse_url(empty_database_url))
    assert path is None or not path.exists()


async def test_a_catalog_of_a_newer_version_is_left_alone(catalog_url: str):
    def pretend(connection: Connection) -> None:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    await on_connection(catalog_url, pretend)

    with pytest.raises(SchemaOutdated, match="newer version"):
        await Catalog.open(catalog_url)
    with pytest.raises(SchemaOutdated):
        await migrate(catalog_url)


async def test_an_unknown_status_is_refused_by_the_database_itself(catalog_url: str):
    def insert(connection: Connection) -> None:
        connection.execute(
            text(
                "INSERT INTO nodes (id, name, url, state, max_concurrency, created_at)"
                " VALUES ('node_1', 'a', 'http://a', 'asleep', 1, '2026-01-01 00:00:00')"
            )
        )

    with pytest.raises(Exception, match="ck_nodes_nodestate"):
        await on_connection(catalog_url, insert)


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "mysql://host/db", "no url at all"])
async def test_only_databases_that_processes_can_share_are_taken(url: str):
    with pytest.raises(InvalidRequest):
        await migrate(url)


async def test_a_place_that_cannot_hold_a_catalog_is_named_unavailable():
    with pytest.raises(CatalogUnavailable):
        await migrate("sqlite:////dev/null/catalog.db")
