"""Jobs that remove: runs that nobody wants to keep any longer, and bytes that nothing refers to."""

from datetime import timedelta
from functools import partial

from common.catalog.retention import OldRuns
from common.catalog.sweeper import GRACE_S, remove_if_forgotten
from common.errors import NotFound
from router.jobs.work import Told, Work

RUNS_AT_ONCE = 25
"""Removed in one transaction: it holds locks on their rows, and SQLite's on everything."""
JOBS_AT_ONCE = 200
FOLDERS_AT_ONCE = 4
FOLDERS = [f"{number:02x}" for number in range(256)]
"""Of a store, by the first two digits of its names."""


async def remove_old_runs(work: Work) -> None:
    """Remove runs that ended long before the job was put down, the oldest first, and the jobs that did.

    result: `runs`, `pictures` and their `bytes`, `jobs`.
    """
    tools = work.tools
    before = work.job.created_at - timedelta(days=work.job.params["older_than_days"])

    async def count() -> Told:
        return {"runs": await tools.catalog.retention.count(before)}

    async def find(after: str) -> Told:
        found = await tools.catalog.retention.find(before, after=after, limit=RUNS_AT_ONCE)
        return {"runs": list(found.run_ids), "pictures": dict(found.asset_bytes)}

    async def remove(found: OldRuns) -> Told:
        await tools.catalog.retention.remove(before, found)
        still_there = await tools.catalog.retention.there(found.run_ids)
        still_needed = await tools.catalog.runs.stored(found.asset_bytes)
        gone = {sha256: size for sha256, size in found.asset_bytes.items() if sha256 not in still_needed}
        for sha256 in gone:
            # Young bytes were put by a run that is about to be written down; if it is not, a sweep removes them.
            await tools.assets.delete(sha256, if_older_than=work.job.created_at - timedelta(seconds=GRACE_S))
        return {"runs": len(found.run_ids) - len(still_there), "pictures": len(gone), "bytes": sum(gone.values())}

    work.count(runs=0, pictures=0, bytes=0, jobs=0)
    work.total = (await work.step("count", count))["runs"]
    after = ""
    while (found := await work.step("find", partial(find, after)))["runs"]:
        work.count(**await work.step("remove", partial(remove, OldRuns(found["runs"], found["pictures"]))))
        work.done += len(found["runs"])
        after = found["runs"][-1]
    await _forget_jobs(work)


async def _forget_jobs(work: Work) -> None:
    jobs = work.tools.catalog.jobs
    before = work.job.created_at - timedelta(days=work.job.params["older_than_days"])

    async def find() -> Told:
        return {"jobs": list(await jobs.ended(before, limit=JOBS_AT_ONCE))}

    async def remove(job_ids: list[str]) -> Told:
        await jobs.remove(job_ids)
        return {}

    while found := (await work.step("find jobs", find))["jobs"]:
        await work.step("remove jobs", partial(remove, found))
        work.count(jobs=len(found))


async def sweep_store(work: Work) -> None:
    """Remove bytes that no run refers to, older than the time between storing bytes and recording them.

    result: `pictures` and their `bytes`.
    """
    tools = work.tools
    before = work.job.created_at - timedelta(seconds=GRACE_S)

    async def find(folders: list[str]) -> Told:
        files = {
            file.sha256: file.size_bytes
            for folder in folders
            async for file in tools.assets.iterate(folder)
            if file.modified_at < before
        }
        needed = await tools.catalog.runs.stored(files)
        return {"pictures": {sha256: size for sha256, size in sorted(files.items()) if sha256 not in needed}}

    async def remove(found: dict[str, int]) -> Told:
        for sha256 in found:
            await remove_if_forgotten(tools.catalog, tools.assets, sha256, older_than=before)
        removed = [sha256 for sha256 in found if await _is_gone(work, sha256)]
        return {"pictures": len(removed), "bytes": sum(found[sha256] for sha256 in removed)}

    async def remove_unfinished() -> Told:
        return {"unfinished": await tools.assets.remove_unfinished(older_than=before)}

    work.count(pictures=0, bytes=0)
    work.total = len(FOLDERS)
    for first in range(0, len(FOLDERS), FOLDERS_AT_ONCE):
        folders = FOLDERS[first : first + FOLDERS_AT_ONCE]
        found = (await work.step("find", partial(find, folders)))["pictures"]
        if found:
            work.count(**await work.step("remove", partial(remove, found)))
        work.done += len(folders)
    await work.step("remove unfinished", remove_unfinished)


async def _is_gone(work: Work, sha256: str) -> bool:
    try:
        await work.tools.assets.stat(sha256)
    except NotFound:
        return True
    return False
