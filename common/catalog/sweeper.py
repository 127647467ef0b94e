"""Puts right what a crash left behind: runs that nobody works on any more, bytes that no run refers to."""

from dataclasses import replace
from datetime import datetime, timedelta

from common.catalog.assets import AssetFile, AssetStore
from common.catalog.catalog import Catalog
from common.catalog.records import SweepReport
from common.clock import utc_now
from common.logs import get_logger

log = get_logger(__name__)

GRACE_S = 3600.0
"""Bytes younger than this may belong to a run that is just being written down."""
_BATCH = 500


async def sweep(catalog: Catalog, assets: AssetStore, *, run_timeout_s: float, grace_s: float) -> SweepReport:
    """`sweep_runs` and `sweep_store`. Several processes may sweep at once. Raises: as they do; what was swept stays swept."""
    report = await sweep_runs(catalog, run_timeout_s=run_timeout_s)
    removed, removed_bytes = await sweep_store(catalog, assets, grace_s=grace_s)
    return replace(report, assets_removed=removed, removed_bytes=removed_bytes)


async def sweep_runs(catalog: Catalog, *, run_timeout_s: float) -> SweepReport:
    """Close open runs without a sign of life for `run_timeout_s`. Raises: CatalogUnavailable."""
    report = await catalog.runs.sweep(older_than_s=run_timeout_s)
    if report != SweepReport():
        log.info("swept", runs=report.runs_closed, attempts=report.attempts_closed)
    return report


async def sweep_store(catalog: Catalog, assets: AssetStore, *, grace_s: float) -> tuple[int, int]:
    """Remove bytes without a row older than `grace_s`, which must be longer than the time between storing bytes and recording
    them. It goes through all that is stored. Returns: how many were removed, and their bytes.

    Raises: CatalogUnavailable, Unavailable: the store cannot be read.
    """
    cutoff = utc_now() - timedelta(seconds=grace_s)
    await assets.remove_unfinished(older_than=cutoff)
    batch, removed = list[AssetFile](), list[AssetFile]()
    async for file in assets.iterate():
        if file.modified_at < cutoff:
            batch.append(file)
        if len(batch) == _BATCH:
            removed += await _remove_forgotten(catalog, assets, batch, cutoff)
            batch = []
    removed += await _remove_forgotten(catalog, assets, batch, cutoff)
    removed_bytes = sum(file.size_bytes for file in removed)
    if removed:
        log.info("store_swept", assets=len(removed), size_bytes=removed_bytes)
    return len(removed), removed_bytes


async def _remove_forgotten(catalog: Catalog, assets: AssetStore, files: list[AssetFile], cutoff: datetime) -> list[AssetFile]:
    known = await catalog.runs.stored([file.sha256 for file in files])
    unknown = [file for file in files if file.sha256 not in known]
    return [file for file in unknown if await remove_if_forgotten(catalog, assets, file.sha256, older_than=cutoff)]


async def remove_if_forgotten(catalog: Catalog, assets: AssetStore, sha256: str, *, older_than: datetime) -> bool:
    """Remove old bytes that no run refers to at this moment. Returns: whether they were removed.

    A run may have been recorded since they were found. One that is recorded after this question has put its bytes within the
    grace time, and `delete` leaves those alone.
    """
    return not await catalog.runs.stored([sha256]) and await assets.delete(sha256, if_older_than=older_than)
