"""Long jobs and routers that die: whatever is killed, and whenever, a job ends as if nothing had been."""

import asyncio
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from common.backup import Repository, verify
from common.catalog import Catalog, JobRecord, JobState
from tests.e2e.conftest import KEY, Machine, Started
from tests.old_runs import put_down_old_runs

HEADERS = {"authorization": f"Bearer {KEY}"}
RUNS = 500
KILLS = 10
SEED = 7
SETTINGS = {"AQUATINT__ROUTER__JOB_LEASE_S": "1", "AQUATINT__LOG_FORMAT": "json"}
WITHIN_S = 90.0


def ask(router: Started, kind: str, **params: Any) -> str:
    answer = httpx.post(
        f"{router.url}/v1/jobs", json={"kind": kind, "params": params}, headers=HEADERS, timeout=30, trust_env=False
    )
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def until(catalog: Catalog, job: str, condition: Callable[[JobRecord], bool], router: Started) -> JobRecord:
    """Look at a job in the catalog, which outlives its routers."""
    async with asyncio.timeout(WITHIN_S):
        while not condition(found := await catalog.jobs.get(job)):
            assert router.popen.poll() is None, router.output()
            await asyncio.sleep(0.002)
    return found


def has_ended(job: JobRecord) -> bool:
    return job.finished_at is not None


def has_come_to(execution: int, done: int, job: JobRecord) -> bool:
    return job.executions >= execution and job.done >= done


@pytest.mark.timeout(600)
async def test_a_job_that_is_killed_ten_times_ends_as_one_that_is_not(machine_on: Machine, catalog_url: str, tmp_path: Path):
    undisturbed = await put_down_old_runs(catalog_url, tmp_path / "assets", RUNS, name="first")
    router = machine_on.router(**SETTINGS)
    catalog = await Catalog.open(catalog_url)
    expected = await until(catalog, ask(router, "retention", older_than_days=30), has_ended, router)
    await put_down_old_runs(catalog_url, tmp_path / "assets", RUNS, name="later")
    # Seeded, anywhere between the beginning and the last but one of its steps.
    points = sorted(random.Random(SEED).sample(range(undisturbed.runs - 25), KILLS))

    job = ask(router, "retention", older_than_days=30)
    for execution, point in enumerate(points, start=1):
        await until(catalog, job, partial(has_come_to, execution, point), router)
        router.kill()
        router = machine_on.router(**SETTINGS)
    ended = await until(catalog, job, has_ended, router)

    assert ended.state is expected.state is JobState.SUCCEEDED
    # A lease of a second may end on a busy machine while its router lives; then there is one execution more.
    assert ended.executions >= KILLS + 1
    told = [{name: (each.summary or {})[name] for name in ("done", "total", "unit", "result")} for each in (ended, expected)]
    removed = {"runs": undisturbed.runs, "pictures": undisturbed.pictures, "bytes": undisturbed.bytes, "jobs": 0}
    assert told == [{"done": undisturbed.runs, "total": undisturbed.runs, "unit": "runs", "result": removed}] * 2
    assert len(await catalog.runs.list(limit=10 * RUNS)) == 2 * 2 * RUNS // 10
    await catalog.close()


async def test_a_backup_whose_router_is_killed_is_whole_in_the_end(machine_on: Machine, catalog_url: str, tmp_path: Path):
    await put_down_old_runs(catalog_url, tmp_path / "assets", RUNS)
    router = machine_on.router(**SETTINGS)
    catalog = await Catalog.open(catalog_url)

    job = ask(router, "backup")
    for execution, point in enumerate(sorted(random.Random(SEED).sample(range(RUNS - 100), 3)), start=1):
        await until(catalog, job, partial(has_come_to, execution, point), router)
        router.kill()
        router = machine_on.router(**SETTINGS)
    ended = await until(catalog, job, has_ended, router)
    await catalog.close()

    assert ended.summary is not None
    result = ended.summary["result"]
    assert ended.state is JobState.SUCCEEDED
    assert ended.executions >= 4
    assert (result["pictures"], result["missing"]) == (RUNS, 0)
    repository = Repository(tmp_path / "backups")
    assert repository.names() == [result["backup"]]
    assert await verify(repository, result["backup"], lambda done, total: None) == []


async def test_a_job_of_a_router_that_is_gone_for_good_is_ended_by_another(
    machine_on: Machine, catalog_url: str, tmp_path: Path
):
    old = await put_down_old_runs(catalog_url, tmp_path / "assets", RUNS)
    routers = [machine_on.router(**SETTINGS) for _ in range(2)]
    catalog = await Catalog.open(catalog_url)

    job = ask(routers[0], "retention", older_than_days=30)
    begun = await until(catalog, job, lambda found: found.done > 0, routers[0])
    assert begun.owner is not None
    owner = next(router for router in routers if begun.owner in router.output())
    survivor = next(router for router in routers if router is not owner)
    owner.kill()
    ended = await until(catalog, job, has_ended, survivor)

    assert ended.state is JobState.SUCCEEDED
    assert ended.owner != begun.owner
    assert ended.owner is not None
    assert ended.owner in survivor.output()
    assert ended.summary is not None
    assert ended.summary["executions"] >= 2
    assert ended.summary["result"] == {"runs": old.runs, "pictures": old.pictures, "bytes": old.bytes, "jobs": 0}
    await catalog.close()
