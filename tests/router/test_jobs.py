"""Long jobs in a router: asked for, watched, cancelled, removed what they should and nothing else."""

import asyncio
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError

from common.catalog import Catalog, JobLeft, JobState, NewJob, open_asset_store
from common.catalog.database import make_engine, parse_url
from common.catalog.tables import Job
from common.errors import Conflict, NotFound
from router.jobs.execution import checkpoints_url
from router.jobs.schedules import Schedule, period_of
from tests.old_runs import put_down_old_runs
from tests.router.conftest import ADMIN_KEY, USER_KEY, House, MakeHouse, MakeRouter

ROOT = Path(__file__).parents[2]
MANY = 1500
"""Runs whose removal takes seconds on the quickest machine: it is at work yet when what it has begun with is seen."""
Event = tuple[int, str, dict[str, Any]]


async def start(house: House, kind: str, **params: Any) -> str:
    answer = await house.client.post("/v1/jobs", json={"kind": kind, "params": params})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def watched(client: httpx.AsyncClient, job: str, *, after: int = 0, until: int | None = None) -> list[Event]:
    """The events of a job after one of them, to its end or the event of a number."""
    headers = {"last-event-id": str(after)} if after else {}
    found: list[Event] = []
    number, name = 0, ""
    async with client.stream("GET", f"/v1/jobs/{job}/events", headers=headers) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            field, _, value = line.partition(": ")
            if field == "id":
                number = int(value)
            elif field == "event":
                name = value
            elif field == "data":
                found.append((number, name, orjson.loads(value)))
                if number == until:
                    break
    return found


async def due(house: House) -> list[dict[str, Any]]:
    """What the clock has put down, once there is something."""
    async with asyncio.timeout(30):
        while not (jobs := (await house.client.get("/v1/jobs")).json()["data"]):
            await asyncio.sleep(0.02)
    found: list[dict[str, Any]] = jobs
    return found


async def test_retention_removes_old_runs_with_their_pictures_and_tells_how_many(
    make_house: MakeHouse, catalog_url: str, tmp_path: Path
):
    house = await make_house()
    old = await put_down_old_runs(catalog_url, tmp_path / "assets", 60)
    assets = open_asset_store(str(tmp_path / "assets"))

    events = await watched(house.client, await start(house, "retention", older_than_days=30))

    states = [data["state"] for _, name, data in events if name == "state"]
    assert states == ["queued", "running", "succeeded"]
    summary = events[-1][2]["summary"]
    assert summary["result"] == {"runs": old.runs, "pictures": old.pictures, "bytes": old.bytes, "jobs": 0}
    assert (summary["done"], summary["total"], summary["unit"]) == (old.runs, old.runs, "runs")
    assert {run.id for run in await house.catalog.runs.list(limit=200)} == {
        *(f"run_old_{number:06d}" for number in range(1, 60, 10)),
        *(f"run_old_{number:06d}_today" for number in range(0, 60, 10)),
    }
    assert len([file async for file in assets.iterate()]) == 60 - old.pictures


async def test_a_sweep_removes_bytes_that_no_run_refers_to(make_house: MakeHouse, catalog_url: str, tmp_path: Path):
    # What is swept so often is runs alone: the store is left to the job.
    house = await make_house(sweep_interval_s=0.05)
    folder = tmp_path / "assets"
    await put_down_old_runs(catalog_url, folder, 10)
    store = open_asset_store(str(folder))
    forgotten = [await store.put(f"forgotten {number}".encode()) for number in range(20)]
    for sha256 in forgotten:
        os.utime(folder / sha256[:2] / sha256[2:4] / sha256, (1, 1))
    young = await store.put(b"about to be written down")

    events = await watched(house.client, await start(house, "sweep"))

    size_bytes = sum(len(f"forgotten {number}") for number in range(20))
    assert events[-1][2]["summary"]["result"] == {"pictures": 20, "bytes": size_bytes}
    left = {file.sha256 async for file in store.iterate()}
    assert young in left
    assert len(left) == 11


async def test_a_cancelled_job_ends_between_two_steps_with_a_summary_of_what_it_did(
    make_house: MakeHouse, catalog_url: str, tmp_path: Path
):
    house = await make_house()
    old = await put_down_old_runs(catalog_url, tmp_path / "assets", MANY)
    before = len(await house.catalog.runs.list(limit=10 * MANY))
    job = await start(house, "retention", older_than_days=30)
    # Queued, running, how many there are: then the first of them are gone.
    first = await watched(house.client, job, until=5)

    cancelled = await house.client.delete(f"/v1/jobs/{job}")
    events = await watched(house.client, job, after=5)
    again = await house.client.delete(f"/v1/jobs/{job}")

    assert first[-1][2]["done"] == 25
    assert cancelled.json()["cancelling"] is True
    assert events[-1][2]["state"] == again.json()["state"] == "cancelled"
    summary = again.json()["summary"]
    assert 0 < summary["result"]["runs"] < old.runs
    assert before - len(await house.catalog.runs.list(limit=10 * MANY)) == summary["result"]["runs"]
    assert (summary["done"], summary["total"]) == (summary["result"]["runs"], old.runs)


async def test_events_go_on_after_the_last_that_a_watcher_got_and_end_with_the_job(make_house: MakeHouse):
    house = await make_house()
    job = await start(house, "retention", older_than_days=30)

    whole = await watched(house.client, job)
    rest = await watched(house.client, job, after=2)
    nothing = await house.client.get(f"/v1/jobs/{job}/events", headers={"last-event-id": str(whole[-1][0])})

    assert [number for number, _, _ in whole] == list(range(1, len(whole) + 1))
    assert rest == whole[2:]
    assert nothing.status_code == 204


async def test_a_job_is_refused_for_what_is_wrong_with_it_and_for_whom(make_house: MakeHouse):
    house = await make_house()

    unknown = await house.client.post("/v1/jobs", json={"kind": "dance"})
    without = await house.client.post("/v1/jobs", json={"kind": "retention"})
    strange = await house.client.post("/v1/jobs", json={"kind": "sweep", "params": {"fast": True}})
    user = await house.client.get("/v1/jobs", headers={"authorization": f"Bearer {USER_KEY}"})
    missing = await house.client.get("/v1/jobs/job_none")

    assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "kind")
    assert (without.status_code, without.json()["error"]["param"]) == (400, "params.older_than_days")
    assert (strange.status_code, strange.json()["error"]["param"]) == (400, "params.fast")
    assert user.status_code == 403
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "job_not_found")


async def test_jobs_are_listed_the_newest_first_and_by_kind_and_state(make_house: MakeHouse):
    house = await make_house()
    first = await start(house, "retention", older_than_days=30)
    await watched(house.client, first)
    second = await start(house, "retention", older_than_days=40)
    await watched(house.client, second)

    async def ids(**query: Any) -> list[str]:
        return [job["id"] for job in (await house.client.get("/v1/jobs", params=query)).json()["data"]]

    assert await ids() == await ids(kind="retention", state="succeeded") == [second, first]
    assert await ids(before=second) == [first]
    assert await ids(kind="sweep") == await ids(state="failed") == []


async def command(house: House, *arguments: str) -> tuple[int, str]:
    """`aquatint jobs ARGUMENTS`: its exit code, and what it prints."""
    program = "from common.commands.jobs import app; app()"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, *arguments, "--url", house.url, "--key", ADMIN_KEY),
        env=os.environ | {"COLUMNS": "200", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_the_command_starts_a_job_and_follows_it_to_its_end(make_house: MakeHouse, catalog_url: str, tmp_path: Path):
    house = await make_house()
    old = await put_down_old_runs(catalog_url, tmp_path / "assets", 60)

    code, told = await command(house, "start", "retention", "--set", "older_than_days=30", "--wait")
    job = (await house.client.get("/v1/jobs")).json()["data"][0]["id"]
    listed = await command(house, "list", "--state", "succeeded")
    watched_again = await command(house, "watch", job, "--json")
    too_late = await house.client.delete(f"/v1/jobs/{job}")

    assert code == 0
    assert told.splitlines()[:2] == ["queued", "running"]
    assert f"{old.runs} of {old.runs} runs" in told
    assert all(part in told for part in (f"runs {old.runs}", f"pictures {old.pictures}", f"bytes {old.bytes}"))
    assert job in listed[1]
    assert orjson.loads(watched_again[1].splitlines()[-1])["state"] == "succeeded"
    assert (too_late.status_code, too_late.json()["error"]["code"]) == (409, "job_ended")


async def test_the_command_says_what_the_router_refuses(make_house: MakeHouse):
    house = await make_house()

    assert "There are no jobs of the kind 'dance'; there are: retention" in (await command(house, "start", "dance"))[1]
    assert "There is no job 'job_none'" in (await command(house, "watch", "job_none"))[1]


async def test_jobs_are_counted_by_kind_and_state(make_house: MakeHouse):
    house = await make_house()
    await watched(house.client, await start(house, "retention", older_than_days=30))

    told = (await house.client.get("/metrics")).text

    assert 'aquatint_jobs{kind="retention",state="succeeded"} 1.0' in told
    assert 'aquatint_jobs{kind="backup",state="failed"} 0.0' in told


async def test_of_two_routers_in_one_process_one_carries_the_jobs_of_both(make_house: MakeHouse, another_router: MakeRouter):
    house = await make_house()
    other, _ = await another_router()

    first = await watched(house.client, await start(house, "retention", older_than_days=30))
    asked = await other.post("/v1/jobs", json={"kind": "retention", "params": {"older_than_days": 30}})
    second = await watched(other, asked.json()["id"])

    assert first[-1][2]["state"] == second[-1][2]["state"] == "succeeded"


async def test_a_router_that_stops_leaves_its_job_to_the_next(
    make_house: MakeHouse, another_router: MakeRouter, catalog_url: str, tmp_path: Path
):
    house = await make_house()
    old = await put_down_old_runs(catalog_url, tmp_path / "assets", MANY)
    job = await start(house, "retention", older_than_days=30)
    await watched(house.client, job, until=5)

    await house.stop()
    left = await house.catalog.jobs.get(job)
    other, _ = await another_router()
    events = await watched(other, job)

    assert left.state is JobState.RUNNING
    summary = events[-1][2]["summary"]
    assert summary["executions"] == 2
    assert summary["result"] == {"runs": old.runs, "pictures": old.pictures, "bytes": old.bytes, "jobs": 0}


async def test_jobs_that_are_due_are_put_down_once_for_all_routers(make_house: MakeHouse, another_router: MakeRouter):
    house = await make_house(retention_days=30)
    other, _ = await another_router(retention_days=30)
    jobs = await due(house)
    await watched(other, jobs[0]["id"])

    assert [job["kind"] for job in (await other.get("/v1/jobs")).json()["data"]] == ["retention"]
    assert jobs[0]["params"] == {"older_than_days": 30}


def test_a_period_is_the_same_all_through_it_and_another_after_it():
    weekly = Schedule("backup", 7)
    week_s = 7 * 86_400

    assert period_of(weekly, 3 * week_s) == period_of(weekly, 4 * week_s - 1) != period_of(weekly, 4 * week_s)


async def test_the_tables_refuse_an_end_without_a_summary(catalog: Catalog, catalog_url: str):
    job = await catalog.jobs.add(NewJob(kind="sweep", params={}))
    engine = make_engine(parse_url(catalog_url))
    ended = update(Job).values(state=JobState.SUCCEEDED, finished_at=datetime.now(UTC))

    async with engine.begin() as connection:
        with pytest.raises(IntegrityError):
            await connection.execute(ended)
    await engine.dispose()

    assert (await catalog.jobs.get(job.id)).state is JobState.QUEUED


async def test_a_job_that_nobody_has_begun_with_is_cancelled_at_once_and_has_a_summary(catalog: Catalog):
    job = await catalog.jobs.add(NewJob(kind="sweep", params={}, only_one="sweep"))
    with pytest.raises(Conflict):
        await catalog.jobs.add(NewJob(kind="sweep", params={}, only_one="sweep"))

    ended = await catalog.jobs.cancel(job.id)

    assert ended.state is JobState.CANCELLED
    assert ended.summary is not None
    assert await catalog.jobs.begin(job.id, "a", lease_s=10) is None
    await catalog.jobs.add(NewJob(kind="sweep", params={}, only_one="sweep"))


async def test_only_the_latest_execution_of_a_job_may_write(catalog: Catalog):
    job = await catalog.jobs.add(NewJob(kind="sweep", params={}))
    first = await catalog.jobs.begin(job.id, "a", lease_s=10)
    second = await catalog.jobs.begin(job.id, "b", lease_s=10)
    assert first is not None
    assert second is not None
    summary = {"done": 1, "total": 1, "unit": "folders", "result": {}}

    with pytest.raises(JobLeft):
        await catalog.jobs.advance(job.id, first.executions, done=1, total=1, unit="folders")
    with pytest.raises(JobLeft):
        await catalog.jobs.finish(job.id, first.executions, JobState.SUCCEEDED, summary)
    await catalog.jobs.finish(job.id, second.executions, JobState.SUCCEEDED, summary)

    ended = await catalog.jobs.get(job.id)
    assert (ended.owner, ended.executions, ended.done) == ("b", 2, 1)


async def test_a_job_is_taken_up_by_one_of_those_who_look_and_again_when_its_lease_has_ended(catalog: Catalog):
    job = await catalog.jobs.add(NewJob(kind="sweep", params={}))

    taken = await asyncio.gather(*(catalog.jobs.take_up(limit=5, lease_s=0.2) for _ in range(4)))
    async with asyncio.timeout(10):
        while not await catalog.jobs.waiting():
            await asyncio.sleep(0.02)
    again = await catalog.jobs.take_up(limit=5, lease_s=60)

    assert sorted(len(each) for each in taken) == [0, 0, 0, 1]
    assert [each.id for each in again] == [job.id]
    assert not await catalog.jobs.waiting()


async def test_jobs_of_long_ago_are_forgotten_with_what_happened_to_them(catalog: Catalog):
    job, still_open = [await catalog.jobs.add(NewJob(kind=kind, params={})) for kind in ("sweep", "retention")]
    await catalog.jobs.cancel(job.id)
    later = datetime.now(UTC) + timedelta(seconds=1)

    ended = await catalog.jobs.ended(later, limit=10)
    await catalog.jobs.remove([*ended, still_open.id])

    assert ended == [job.id]
    with pytest.raises(NotFound):
        await catalog.jobs.get(job.id)
    assert await catalog.jobs.events(job.id, after=0) == []
    assert (await catalog.jobs.get(still_open.id)).state is JobState.QUEUED


def test_checkpoints_are_in_the_catalogs_database_or_beside_its_file():
    assert checkpoints_url("sqlite+aiosqlite:////data/catalog.db") == "sqlite:////data/catalog.jobs.db"
    assert (
        checkpoints_url("postgresql+asyncpg://me:secret@db:5433/aquatint?ssl=require")
        == "postgresql+psycopg://me:secret@db:5433/aquatint?sslmode=require"
    )
