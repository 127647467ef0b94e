"""A backup as a job: the rows in one step, for they are of one moment; then the pictures, some in each."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from common.backup.making import Written, copy_all, manifest_of, prune, write_manifest, write_rows, written_names
from common.backup.repository import Repository, TableFile
from common.errors import Conflict, StorageFull
from common.logs import get_logger
from router.jobs.work import StepFailed, Stopped, Told, Work

log = get_logger(__name__)

PICTURES_AT_ONCE = 100
LOCK_AGAIN_S = 1.0


async def back_up(work: Work) -> None:
    """Make a backup, and remove old ones if the job is asked to.

    result: `backup`, its name; its `rows`, `pictures`, their `bytes`, those `missing`.
    """
    repository = Repository(work.tools.settings.backup_path)
    folder = repository.unfinished(work.job.created_at, work.job.id)
    try:
        async with _beside_others(repository):
            await _make(work, repository, folder)
    except (Stopped, StepFailed):
        shutil.rmtree(folder, ignore_errors=True)
        raise
    keep = work.job.params.get("keep")
    if keep is not None:
        await work.step("prune", partial(_prune, repository, keep))


async def _make(work: Work, repository: Repository, folder: Path) -> None:
    tools = work.tools
    told = await work.step("rows", partial(_rows, work, folder))
    written = Written(told["revision"], [TableFile.model_validate(table) for table in told["tables"]], told["listed"])
    names, missing, size_bytes = list[str](), list[str](), 0

    async def copy(first: int) -> Told:
        some = _names(folder, written, names)[first : first + PICTURES_AT_ONCE]
        copied_bytes, lost = await copy_all(tools.assets, repository.assets, some, _say_nothing)
        return {"count": len(some), "bytes": copied_bytes, "missing": lost}

    async def publish() -> Told:
        name = manifest_of(work.job.created_at, written, 0, 0, []).name
        if name in repository.names() and repository.manifest(name).made_at == work.job.created_at:
            # By the try before this one; or it is a job that came back with a restored backup.
            shutil.rmtree(folder, ignore_errors=True)
            return {"backup": name}
        if work.job.executions > 1:
            # While no router was at it, nothing kept a prune from removing pictures that only this one knows.
            await copy_all(tools.assets, repository.assets, _names(folder, written, names), _say_nothing)
        manifest = manifest_of(work.job.created_at, written, work.done, size_bytes, sorted(missing))
        try:
            write_manifest(folder, manifest)
            repository.publish(folder, name)
        except OSError as error:
            raise _unwritable(error) from error
        return {"backup": name}

    work.total = told["pictures"]
    work.result |= {"rows": sum(table.rows for table in written.tables), "pictures": 0, "bytes": 0, "missing": 0}
    while work.done < told["pictures"]:
        copied = await work.step("pictures", partial(copy, work.done))
        work.done += copied["count"]
        size_bytes += copied["bytes"]
        missing += copied["missing"]
        work.count(pictures=copied["count"], bytes=copied["bytes"], missing=len(copied["missing"]))
    work.result |= await work.step("publish", publish)


async def _rows(work: Work, folder: Path) -> Told:
    try:
        _make_anew(folder)
        written = await write_rows(work.tools.settings.catalog_url, folder)
    except OSError as error:
        raise _unwritable(error) from error
    tables: list[dict[str, Any]] = [table.model_dump(mode="json") for table in written.tables]
    return asdict(written) | {"tables": tables, "pictures": len(written_names(folder, written))}


def _make_anew(folder: Path) -> None:
    # There may be what a router left that died in the middle of the first step.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)


def _names(folder: Path, written: Written, known: list[str]) -> list[str]:
    """The pictures of the backup, read once in an execution."""
    if not known:
        known += written_names(folder, written)
    return known


async def _prune(repository: Repository, keep: int) -> Told:
    try:
        await prune(repository, keep=keep)
    except Conflict as error:
        # The next backup removes what this one leaves.
        log.warning("backups_not_pruned", why=error.message)
    return {}


@asynccontextmanager
async def _beside_others(repository: Repository) -> AsyncIterator[None]:
    """Be at work on the backups as long as this execution is. A prune is waited for."""
    while True:
        try:
            lock = repository.locked(alone=False)
            lock.__enter__()
        except Conflict:
            await asyncio.sleep(LOCK_AGAIN_S)
            continue
        break
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def _say_nothing(done: int, total: int) -> None:
    """A step says how far the job is when it has ended."""


def _unwritable(error: OSError) -> StorageFull:
    return StorageFull(f"The backup cannot be written: {error.strerror}.")
