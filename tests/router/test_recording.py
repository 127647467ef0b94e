"""When a run is recorded: before it is sent where somebody may ask for it again, or where its catalog may be away."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from common.catalog import AttemptStatus, RunStatus
from common.catalog.database import Database, parse_url
from common.node_api import RUN_ID_HEADER
from tests.fakes.node import MODEL
from tests.faults.estate import until
from tests.router.conftest import USER_KEY, MakeHouse


@asynccontextmanager
async def locked_runs(catalog_url: str) -> AsyncIterator[AsyncSession]:
    """Nobody else can write a run meanwhile."""
    database = Database(parse_url(catalog_url))
    async with database.write() as session:
        if not catalog_url.startswith("sqlite"):
            await session.execute(text("LOCK TABLE runs, idempotency_keys IN EXCLUSIVE MODE"))
        yield session
    await database.close()


async def two_wait(session: AsyncSession) -> bool:
    """Whether two others wait for what this session has locked (PostgreSQL)."""
    return (await session.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")) or 0) >= 2


async def test_only_a_plain_run_on_a_catalog_that_is_a_file_is_sent_before_it_is_recorded(
    make_house: MakeHouse, catalog_url: str
):
    house = await make_house("a")
    started = house.nodes["a"].started
    asked = {"prompt": "a cat", "model": MODEL}
    async with locked_runs(catalog_url) as session:
        # Of two users: those of one user enter the line in the order of their coming.
        of_another = {"idempotency-key": "once", "authorization": f"Bearer {USER_KEY}"}
        keyed = house.client.post("/v1/images/generations", json=asked, headers=of_another)
        requests = [asyncio.create_task(keyed), asyncio.create_task(house.generate())]
        if catalog_url.startswith("sqlite"):
            await until(lambda: bool(started), what="the plain run to be sent")
        else:
            await until(lambda: two_wait(session), what="both runs to wait")
        sent = list(started)
    answers = await asyncio.gather(*requests)

    assert [answer.status_code for answer in answers] == [200, 200]
    assert sent == ([answers[1].headers[RUN_ID_HEADER]] if catalog_url.startswith("sqlite") else [])
    for answer in answers:
        run = await house.catalog.runs.get(answer.headers[RUN_ID_HEADER])
        assert (run.status, [each.no for each in run.attempts]) == (RunStatus.SUCCEEDED, [1])


async def test_a_run_whose_node_fails_before_anybody_recorded_it_is_recorded_with_both_its_attempts(make_house: MakeHouse):
    house = await make_house("a", "b")
    for node in house.nodes.values():
        node.faults.mode, node.faults.times = "garbage_500", 1

    answer = await house.generate()
    failed = await house.catalog.runs.get(answer.headers[RUN_ID_HEADER])
    again = await house.generate()
    made = await house.catalog.runs.get(again.headers[RUN_ID_HEADER])

    assert (answer.status_code, again.status_code) == (502, 200)
    assert failed.status is RunStatus.FAILED
    assert [(each.no, each.status) for each in failed.attempts] == [(1, AttemptStatus.FAILED), (2, AttemptStatus.FAILED)]
    assert made.status is RunStatus.SUCCEEDED
