"""Backups that a router makes as jobs."""

from pathlib import Path
from typing import Any

from common.backup import Repository, verify
from common.backup.repository import UNFINISHED
from tests.old_runs import put_down_old_runs
from tests.router.conftest import House, MakeHouse
from tests.router.test_jobs import due, start, watched


async def faults(repository: Repository) -> list[str]:
    return await verify(repository, repository.newest(), lambda done, total: None)


async def ended(house: House, kind: str, **params: Any) -> dict[str, Any]:
    events = await watched(house.client, await start(house, kind, **params))
    last: dict[str, Any] = events[-1][2]
    return last


async def test_a_backup_is_made_as_a_job_and_is_whole(make_house: MakeHouse, catalog_url: str, tmp_path: Path):
    house = await make_house(backup_folder=tmp_path / "kept")
    await put_down_old_runs(catalog_url, tmp_path / "assets", 250)
    repository = Repository(tmp_path / "kept")

    told = await ended(house, "backup")

    result = told["summary"]["result"]
    manifest = repository.manifest(result["backup"])
    assert told["state"] == "succeeded"
    assert (result["pictures"], result["missing"]) == (manifest.assets.count, 0) == (250, 0)
    assert (result["rows"], result["bytes"]) == (manifest.rows, manifest.assets.size_bytes)
    assert await faults(repository) == []
    assert list((tmp_path / "kept" / "snapshots").glob(f"{UNFINISHED}*")) == []


async def test_a_picture_that_the_store_has_lost_is_counted_and_the_rest_is_backed_up(
    make_house: MakeHouse, catalog_url: str, tmp_path: Path
):
    house = await make_house()
    await put_down_old_runs(catalog_url, tmp_path / "assets", 20)
    lost = next(path for path in (tmp_path / "assets").rglob("*") if path.is_file())
    lost.unlink()

    result = (await ended(house, "backup"))["summary"]["result"]

    repository = Repository(tmp_path / "backups")
    assert (result["pictures"], result["missing"]) == (20, 1)
    assert repository.manifest(result["backup"]).assets.missing == [lost.name]


async def test_only_as_many_backups_stay_as_the_job_is_told(make_house: MakeHouse, catalog_url: str, tmp_path: Path):
    house = await make_house()
    await put_down_old_runs(catalog_url, tmp_path / "assets", 10)
    first = (await ended(house, "backup"))["summary"]["result"]["backup"]
    repository = Repository(tmp_path / "backups")

    # Backups are named by the second: the next one may be too early, and says so.
    while (told := await ended(house, "backup", keep=1))["state"] == "failed":
        assert told["error"]["code"] == "conflict"

    second = told["summary"]["result"]["backup"]
    assert second != first
    assert repository.names() == [second]
    assert await faults(repository) == []


async def test_a_backup_that_cannot_be_written_fails_with_the_reason_and_a_summary(make_house: MakeHouse, tmp_path: Path):
    (tmp_path / "file").write_text("not a folder")
    house = await make_house(backup_folder=tmp_path / "file" / "backups")

    told = await ended(house, "backup")

    assert told["state"] == "failed"
    assert told["error"]["code"] == "storage_full"
    assert told["summary"]["executions"] == 1


async def test_a_backup_is_due_once_in_its_period(make_house: MakeHouse, catalog_url: str, tmp_path: Path):
    house = await make_house(backup_days=7, backup_keep=4)
    (job,) = await due(house)
    await watched(house.client, job["id"])

    assert (job["kind"], job["params"]) == ("backup", {"keep": 4})
    assert len(Repository(tmp_path / "backups").names()) == 1
