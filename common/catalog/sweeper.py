"""Puts right what a crash left behind: runs that nobody works on any more, bytes that no run refers to."""

from dataclasses import replace
from datetime import timedelta

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
    """Close open runs without a sign of life for `run_timeout_s`; remove bytes without a row older than `grace_s`.

    `grace_s` must be longer than the time between storing bytes and recording them. Several processes may sweep at once.
    Raises: CatalogUnavailable, Unavailable: the store cannot be read; what was swept until then stays swept.
    """
    report = await sweep_runs(catalog, run_timeout_s=run_timeout_s)
    cutoff = utc_now() - timedelta(seconds=grace_s)
    await assets.remove_unfinished(older_than=cutoff)
    batch: list[AssetFile] = []
    async for file in assets.iterate():
        if file.modified_at < cutoff:
            batch.append(file)
        if len(batch) == _BATCH:
            report = await _remove_forgotten(catalog, assets, batch, report, grace_s)
            batch = []
    report = await _remove_forgotten(catalog, assets, batch, report, grace_s)
    if report.assets_removed:
        log.info("store_swept", assets=report.assets_removed, size_bytes=report.removed_bytes)
    return report


async def sweep_runs(catalog: Catalog, *, run_timeout_s: float) -> SweepReport:
    """The first half of `sweep`, which costs little however much is stored. Raises: CatalogUnavailable."""
    report = await catalog.runs.sweep(older_than_s=run_timeout_s)
    if report != SweepReport():
        log.info("swept", runs=report.runs_closed, attempts=report.attempts_closed)
    return report


async def _remove_forgotten(
    catalog: Catalog, assets: AssetStore, files: list[AssetFile], report: SweepReport, grace_s: float
) -> SweepReport:
    cutoff = utc_now() - timedelta(seconds=grace_s)
    known = await catalog.runs.stored([file.sha256 for file in files])
    for file in files:
        # Asked again right before: a run may have been recorded since the batch was read. One that is recorded after
        # this question has put its bytes within the grace time, and `delete` leaves those alone.
        if file.sha256 in known or await catalog.runs.stored([file.sha256]):
            continue
        if await assets.delete(file.sha256, if_older_than=cutoff):
            report = replace(
                report, assets_removed=report.assets_removed + 1, removed_bytes=report.removed_bytes + file.size_bytes
            )
    return report
