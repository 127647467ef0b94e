"""I13: what is backed up after a fault, and restored from there, is what the catalog and the store have; and where they do not
agree, the backup says in what."""

import shutil
from pathlib import Path

from common.backup import Repository, create, restore, verify
from common.catalog import Catalog, sqlite_url
from common.catalog.assets import key_of
from tests.faults.estate import Estate


def _silent(done: int, total: int) -> None:
    """Nobody looks at the progress."""


async def differences(estate: Estate, lost: str) -> list[str]:
    """Breaches of I13. lost: the sha256 of a picture that the catalog knows; it is not in the store meanwhile."""
    picture, folder = estate.home / "assets" / key_of(lost), estate.home / "backups"
    away = picture.with_name("away")
    picture.rename(away)
    try:
        return await _compared(estate, lost, folder)
    finally:
        away.rename(picture)
        shutil.rmtree(folder)


async def _compared(estate: Estate, lost: str, folder: Path) -> list[str]:
    repository, store = Repository(folder), str(estate.home / "assets")
    made = await create(estate.database.url, store, repository, _silent)
    told = await verify(repository, made.name, _silent)
    wrong = [] if len(told) == 1 and lost in told[0] else [f"one picture is missing, and a backup is told to lack {told}"]
    url = sqlite_url(folder / "restored.db")
    done = await restore(repository, made.name, url, str(folder / "restored"), _silent)
    if (made.assets.missing, done.missing, done.assets) != ([lost], [lost], made.assets.count - 1):
        wrong.append(f"without one picture, {made.assets.missing} and {done.missing} are said to be missing")
    before, after = estate.catalog, await Catalog.open(url)
    try:
        newest = await before.runs.list(limit=200)
        same = [await after.runs.get(run.id) == run for run in newest]
    finally:
        await after.close()
    return wrong + ([] if all(same) else [f"{same.count(False)} runs are not what they were"])
