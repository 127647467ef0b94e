"""Backups of catalogs in use, on both kinds of database, and what can be had back from them."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from common.backup import Repository, create, making, prune, restore, verify
from common.backup.repository import BackupDamaged
from common.catalog import Catalog, NewRun, SchemaOutdated, migrate, open_asset_store, sqlite_url
from common.catalog.copying import kind_of, shapes
from common.catalog.database import make_engine, parse_url
from common.catalog.tables import Table
from common.errors import CatalogUnavailable, Conflict

WRITER = str(Path(__file__).with_name("writer.py"))


def no_progress(done: int, total: int) -> None:
    assert 0 < done <= total


@contextmanager
def written_to(url: str, assets: Path) -> Iterator[Callable[[int], list[str]]]:
    """A process writes runs all the while. Gives: wait for so many more of them -> their ids."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    writer = subprocess.Popen([sys.executable, WRITER, url, str(assets)], env=environment, text=True, stdout=subprocess.PIPE)
    assert writer.stdout is not None
    stdout = writer.stdout
    try:
        yield lambda count: [stdout.readline().strip() for _ in range(count)]
    finally:
        writer.kill()
        writer.communicate()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[], datetime]:
    """Backups a day apart: a name is a second, and tests are quicker."""
    days = iter(range(1000))

    def next_day() -> datetime:
        return datetime(2026, 1, 1, 3, tzinfo=UTC) + timedelta(days=next(days))

    monkeypatch.setattr(making, "utc_now", next_day)
    return next_day


@pytest.fixture
def repository(tmp_path: Path, clock: Callable[[], datetime]) -> Repository:
    return Repository(tmp_path / "backups")


async def fill(url: str, assets: Path, count: int = 3) -> None:
    with written_to(url, assets) as wait_for:
        wait_for(count)
    catalog = await Catalog.open(url)
    (run, *_) = await catalog.runs.list(limit=1000)
    await catalog.runs.tag(run.id, ["good"])
    await catalog.close()


def new_run(id: str, prompt: str = "a red circle") -> NewRun:
    return NewRun(id=id, task="generation", model="m", prompt=prompt, request={"n": 1}, request_id="r", source="router", n=1)


def hashes(repository: Repository, name: str) -> dict[str, tuple[int, str]]:
    return {table.name: (table.rows, table.sha256) for table in repository.manifest(name).tables}


async def test_a_backup_under_load_moves_from_sqlite_to_postgresql_and_back_unchanged(
    sqlite_catalog_url: str, empty_postgres_url: str, repository: Repository, tmp_path: Path
):
    with written_to(sqlite_catalog_url, tmp_path / "assets") as wait_for:
        before = wait_for(20)
        first = await create(sqlite_catalog_url, str(tmp_path / "assets"), repository, no_progress)
        # The pipe holds what was told meanwhile; the writer is past that when it has told this much more.
        wait_for(20)

    assert await verify(repository, first.name, no_progress) == []
    assert first.assets.missing == []
    await restore(repository, first.name, empty_postgres_url, str(tmp_path / "assets 2"), no_progress)
    moved = await Catalog.open(empty_postgres_url)
    known = {run.id for run in await moved.runs.list(limit=1000)}
    await moved.close()
    left = await Catalog.open(sqlite_catalog_url)
    written = {run.id for run in await left.runs.list(limit=1000)}
    await left.close()
    assert set(before) <= known < written

    second = await create(empty_postgres_url, str(tmp_path / "assets 2"), repository, no_progress)
    back = sqlite_url(tmp_path / "back.db")
    await restore(repository, second.name, back, str(tmp_path / "assets 3"), no_progress)
    third = await create(back, str(tmp_path / "assets 3"), repository, no_progress)
    assert hashes(repository, first.name) == hashes(repository, second.name) == hashes(repository, third.name)
    assert min(hashes(repository, third.name)[table][0] for table in ("runs", "images", "assets", "attempts")) >= 20
    stores = [open_asset_store(str(tmp_path / name)) for name in ("assets 2", "assets 3")]
    found = [sorted([file.sha256 async for file in store.iterate()]) for store in stores]
    assert found[0] == found[1] == making.names_of(repository, first.name)
    assert len([await stores[1].get(sha256) for sha256 in found[1]]) >= 20


async def test_every_row_of_a_run_comes_back(catalog_url: str, repository: Repository, tmp_path: Path):
    catalog = await Catalog.open(catalog_url, secret_key=b"dGVzdHMgdXNlIHRoaXMga2V5LCBub2JvZHkgZWxzZSE=")
    await catalog.runs.open(new_run("run_1", "'; \n \t ☃ 𝕏"))
    await catalog.runs.tag("run_1", ["a", "b"])
    await catalog.nodes.add(name="n", url="http://n", token="t", max_concurrency=2)
    run, nodes = await catalog.runs.get("run_1"), await catalog.nodes.list()
    await catalog.close()
    made = await create(catalog_url, str(tmp_path / "assets"), repository, no_progress)
    url = sqlite_url(tmp_path / "new" / "catalog.db")

    done = await restore(repository, made.name, url, str(tmp_path / "assets"), no_progress)

    catalog = await Catalog.open(url, secret_key=b"dGVzdHMgdXNlIHRoaXMga2V5LCBub2JvZHkgZWxzZSE=")
    assert await catalog.runs.get("run_1") == run
    assert await catalog.nodes.list() == nodes
    await catalog.close()
    assert done.rows == made.rows == 6


async def test_tables_that_number_their_rows_go_on_after_the_restored_ones(
    catalog_url: str, empty_postgres_url: str, repository: Repository, tmp_path: Path
):
    catalog = await Catalog.open(catalog_url)
    await catalog.runs.open(new_run("run_1"))
    await catalog.runs.tag("run_1", ["a", "b", "c"])
    await catalog.close()
    made = await create(catalog_url, str(tmp_path / "assets"), repository, no_progress)
    await restore(repository, made.name, empty_postgres_url, str(tmp_path / "assets"), no_progress)

    catalog = await Catalog.open(empty_postgres_url)
    await catalog.runs.tag("run_1", ["d"])
    assert (await catalog.runs.get("run_1")).tags == ("a", "b", "c", "d")
    await catalog.close()


async def test_a_picture_is_kept_once_however_many_backups_know_it(
    sqlite_catalog_url: str, repository: Repository, tmp_path: Path
):
    assets = tmp_path / "assets"
    await fill(sqlite_catalog_url, assets)
    one = await create(sqlite_catalog_url, str(assets), repository, no_progress)
    files = {path: path.stat().st_mtime_ns for path in (repository.folder / "assets").rglob("*") if path.is_file()}
    two = await create(sqlite_catalog_url, str(assets), repository, no_progress)

    assert one.assets.count == two.assets.count == len(files)
    assert {path: path.stat().st_mtime_ns for path in files} == files
    assert repository.names() == [one.name, two.name]


async def test_only_the_owner_can_read_a_backup(sqlite_catalog_url: str, repository: Repository, tmp_path: Path):
    await create(sqlite_catalog_url, str(tmp_path / "assets"), repository, no_progress)
    assert repository.folder.stat().st_mode & 0o077 == 0


async def test_pruning_keeps_the_newest_and_all_their_pictures(sqlite_catalog_url: str, repository: Repository, tmp_path: Path):
    url, assets = sqlite_catalog_url, tmp_path / "assets"
    await fill(url, assets)
    old = await create(url, str(assets), repository, no_progress)
    engine = make_engine(parse_url(url)).execution_options(writing=True)
    async with engine.begin() as connection:
        await connection.execute(text("DELETE FROM images"))
        await connection.execute(text("DELETE FROM assets"))
    await engine.dispose()
    await fill(url, assets)
    new = await create(url, str(assets), repository, no_progress)
    crashed = repository.folder / "snapshots" / ".unfinished-20250101T000000Z-1"
    crashed.mkdir()

    removed, pictures = await prune(repository, keep=1)

    assert (removed, pictures) == ([old.name], old.assets.count)
    assert repository.names() == [new.name]
    assert await verify(repository, new.name, no_progress) == []
    assert not crashed.exists()


async def test_nothing_is_pruned_while_a_backup_is_made(sqlite_catalog_url: str, repository: Repository, tmp_path: Path):
    with repository.locked(alone=False):
        await create(sqlite_catalog_url, str(tmp_path / "assets"), repository, no_progress)
        with pytest.raises(Conflict):
            await prune(repository, keep=1)
    with repository.locked(alone=True), pytest.raises(Conflict):
        await create(sqlite_catalog_url, str(tmp_path / "assets"), repository, no_progress)


async def test_pictures_that_the_store_lost_are_named_and_the_rest_is_backed_up(
    sqlite_catalog_url: str, repository: Repository, tmp_path: Path
):
    await fill(sqlite_catalog_url, tmp_path / "assets", 4)
    lost, damaged, *_ = sorted(path for path in (tmp_path / "assets").rglob("*") if path.is_file())
    lost.unlink()
    damaged.write_bytes(b"other")

    made = await create(sqlite_catalog_url, str(tmp_path / "assets"), repository, no_progress)

    assert made.assets.missing == sorted([lost.name, damaged.name])
    assert len(await verify(repository, made.name, no_progress)) == 2
    done = await restore(repository, made.name, sqlite_url(tmp_path / "new.db"), str(tmp_path / "new"), no_progress)
    assert (done.missing, done.assets) == (made.assets.missing, made.assets.count - 2)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def _change_a_row(path: Path) -> None:
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    row = json.loads(lines[0]) | {"model": "another"}
    path.write_bytes(gzip.compress("\n".join([json.dumps(row), *lines[1:]]).encode()))


@pytest.mark.parametrize("damage", [_truncate, _change_a_row, Path.unlink])
async def test_damaged_rows_are_told_and_not_restored(
    sqlite_catalog_url: str, repository: Repository, tmp_path: Path, damage: Callable[[Path], Any]
):
    await fill(sqlite_catalog_url, tmp_path / "assets")
    made = await create(sqlite_catalog_url, str(tmp_path / "assets"), repository, no_progress)
    damage(repository.path(made.name) / "runs.jsonl.gz")

    assert [fault[:13] for fault in await verify(repository, made.name, no_progress)] == ["runs.jsonl.gz"]
    url = sqlite_url(tmp_path / "new.db")
    with pytest.raises(BackupDamaged):
        await restore(repository, made.name, url, str(tmp_path / "new"), no_progress)
    await migrate(url)
    catalog = await Catalog.open(url)
    assert await catalog.runs.list(limit=10) == []
    await catalog.close()


async def test_a_damaged_picture_stops_a_restore_unless_it_is_left_out(
    sqlite_catalog_url: str, repository: Repository, tmp_path: Path
):
    await fill(sqlite_catalog_url, tmp_path / "assets")
    made = await create(sqlite_catalog_url, str(tmp_path / "assets"), repository, no_progress)
    damaged = next(path for path in (repository.folder / "assets").rglob("*") if path.is_file())
    damaged.write_bytes(damaged.read_bytes()[::-1])
    url, target = sqlite_url(tmp_path / "new.db"), str(tmp_path / "new")

    assert await verify(repository, made.name, no_progress) == [f"Picture {damaged.name} is damaged."]
    with pytest.raises(BackupDamaged, match=damaged.name):
        await restore(repository, made.name, url, target, no_progress)
    done = await restore(repository, made.name, url, target, no_progress, despite_damage=True)
    assert (done.missing, done.assets) == ([damaged.name], made.assets.count - 1)


async def test_rows_that_are_there_are_never_overwritten(catalog_url: str, repository: Repository, tmp_path: Path):
    await fill(catalog_url, tmp_path / "assets")
    made = await create(catalog_url, str(tmp_path / "assets"), repository, no_progress)
    with pytest.raises(Conflict, match="rows in the database"):
        await restore(repository, made.name, catalog_url, str(tmp_path / "assets"), no_progress)
    assert hashes(repository, made.name) == hashes(
        repository, (await create(catalog_url, str(tmp_path / "assets"), repository, no_progress)).name
    )


async def test_a_backup_of_an_older_version_is_upgraded(
    empty_database_url: str, sqlite_catalog_url: str, repository: Repository, tmp_path: Path
):
    """Its rows are loaded into the tables that they are from, also where newer ones, without rows, are in the way."""
    await fill(sqlite_catalog_url, tmp_path / "assets")
    made = await create(sqlite_catalog_url, str(tmp_path / "assets"), repository, no_progress)
    path = repository.path(made.name) / "manifest.json"
    manifest = json.loads(path.read_bytes()) | {"revision": "0001"}
    manifest["tables"] = [table for table in manifest["tables"] if table["name"] in OLDEST_TABLES]
    for table in manifest["tables"]:
        for column in {"runs": ["result_key", "parent_id"], "api_keys": ["limits"], "nodes": ["approved_at"]}.get(
            table["name"], []
        ):
            del table["columns"][column]
    path.write_text(json.dumps(manifest))
    await migrate(empty_database_url)

    await restore(repository, made.name, empty_database_url, str(tmp_path / "new"), no_progress)

    catalog = await Catalog.open(empty_database_url)
    assert {image.sha256 for run in await catalog.runs.list(limit=100) for image in run.images} == set(
        making.names_of(repository, made.name)
    )
    await catalog.close()


OLDEST_TABLES = {
    *("api_keys", "assets", "attempts", "images", "model_aliases", "model_files", "models", "nodes"),
    *("run_tags", "runs", "secrets", "tags"),
}


async def test_a_backup_of_a_newer_version_is_refused(sqlite_catalog_url: str, repository: Repository, tmp_path: Path):
    made = await create(sqlite_catalog_url, str(tmp_path / "assets"), repository, no_progress)
    path = repository.path(made.name) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"revision": "9999"}))
    with pytest.raises(SchemaOutdated):
        await restore(repository, made.name, sqlite_url(tmp_path / "new.db"), str(tmp_path / "assets"), no_progress)


async def test_a_catalog_that_cannot_be_reached_leaves_no_backup(repository: Repository, tmp_path: Path):
    with pytest.raises(CatalogUnavailable):
        await create("postgresql://nobody@127.0.0.1:1/nothing", str(tmp_path / "assets"), repository, no_progress)
    assert repository.names() == []
    assert list((repository.folder / "snapshots").iterdir()) == []


def test_copies_know_the_type_of_every_column():
    assert {column.name: kind_of(column) for column in Table.metadata.tables["images"].columns} == {
        "id": "text",
        "run_id": "text",
        "index": "integer",
        "sha256": "text",
        "seed": "integer",
        "created_at": "time",
    }
    assert {shape.name for shape in shapes()} == set(Table.metadata.tables)


def test_every_table_that_keeps_bytes_is_looked_at():
    naming = {table.name for table in Table.metadata.sorted_tables if "sha256" in table.columns}
    # A picture is an asset already, and files of models belong to nodes.
    assert naming == {*making.NAMING, "images", "model_files"}
