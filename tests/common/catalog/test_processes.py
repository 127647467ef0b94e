"""Several processes write one catalog, and one of them may die at any moment."""

import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from common.catalog import Catalog, NewRun, RunStatus
from common.catalog.database import STOPPED_AFTER_S, make_engine, parse_url
from common.clock import utc_now
from common.errors import CatalogUnavailable

WRITER = str(Path(__file__).with_name("writer.py"))
HANGS_AFTER_S = 290
"""For sixteen processes that start at once, on a machine that is busy: a bound for what hangs, not for what is slow."""


def start(url: str, processes: int, count: int, environment: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, WRITER, url, str(processes), str(count)]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


async def test_sixteen_processes_that_write_at_once_lose_nothing(sqlite_catalog_url: str, child_environment: dict[str, str]):
    writers = start(sqlite_catalog_url, 16, 5, child_environment)
    output, errors = writers.communicate(timeout=HANGS_AFTER_S)

    assert (writers.returncode, errors) == (0, "")
    told = sorted(output.split())
    catalog = await Catalog.open(sqlite_catalog_url)
    stored = await catalog.runs.list(limit=1000)
    await catalog.close()
    assert sorted(run.id for run in stored) == told
    assert len(told) == 80
    assert len({run.prompt for run in stored}) == 16
    assert {(run.status, len(run.images)) for run in stored} == {(RunStatus.SUCCEEDED, 4)}


@pytest.mark.parametrize("commits", [1, 12])
async def test_a_writer_that_is_killed_leaves_every_run_whole_or_open(
    commits: int, catalog_url: str, child_environment: dict[str, str]
):
    writer = start(catalog_url, 1, 0, child_environment)
    assert writer.stdout is not None
    told = [writer.stdout.readline().strip() for _ in range(commits)]
    writer.kill()
    rest, _ = writer.communicate()

    catalog = await Catalog.open(catalog_url)
    await catalog.runs.sweep(older_than_s=-1)
    stored = {run.id: run for run in await catalog.runs.list(limit=1000)}
    await catalog.close()
    assert set(told + rest.split()) <= stored.keys()
    assert {stored[run_id].status for run_id in told} == {RunStatus.SUCCEEDED}
    whole = {(RunStatus.SUCCEEDED, 4), (RunStatus.FAILED, 0)}
    assert {(run.status, len(run.images)) for run in stored.values()} <= whole


async def test_the_rows_that_a_stopped_process_holds_are_free_again_as_soon_as_nobody_can_wait_for_it(
    postgres_catalog_url: str, new_run: Callable[..., NewRun]
):
    catalog = await Catalog.open(postgres_catalog_url)
    run = new_run()
    began_s = time.monotonic()
    await catalog.runs.open(run)
    ordinary_s = time.monotonic() - began_s
    stopped = make_engine(parse_url(postgres_catalog_url))
    connection = await stopped.connect()
    await connection.execute(text("SELECT id FROM runs FOR UPDATE"))
    began_s = time.monotonic()

    cancelled = False
    while not cancelled:
        try:
            cancelled = await catalog.runs.cancel(run.id, reason="")
        except CatalogUnavailable:
            continue

    # Whoever began to wait right before waits once more, and a machine at work takes its time for all of it.
    assert time.monotonic() - began_s < STOPPED_AFTER_S + 5 + 10 * ordinary_s
    await connection.invalidate()
    await connection.close()
    await stopped.dispose()
    await catalog.close()


async def test_a_run_that_somebody_holds_locked_keeps_no_other_from_its_sign_of_life(
    postgres_catalog_url: str, new_run: Callable[..., NewRun]
):
    catalog = await Catalog.open(postgres_catalog_url)
    locked, free = new_run(), new_run()
    for run in (locked, free):
        await catalog.runs.open(run)
    other = make_engine(parse_url(postgres_catalog_url))
    async with other.connect() as connection:
        await connection.execute(text("SELECT id FROM runs WHERE id = :id FOR UPDATE"), {"id": locked.id})
        marked = utc_now()
        await catalog.runs.heartbeat([locked.id, free.id])
    await other.dispose()

    report = await catalog.runs.sweep(older_than_s=60, now=marked + timedelta(seconds=60))

    assert report.runs_closed == (locked.id,)
    await catalog.close()
