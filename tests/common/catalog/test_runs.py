"""A run's life: order of writes, fencing, lists, signs of life."""

import asyncio
from collections.abc import Callable
from datetime import UTC, timedelta
from typing import Any

import pytest
from sqlalchemy import select, text

from common.catalog import AttemptFenced, AttemptStatus, Catalog, NewImage, NewRun, RunStatus
from common.catalog.tables import Run
from common.clock import utc_now
from common.errors import InvalidRequest, NotFound


async def test_a_run_is_recorded_from_acceptance_to_its_pictures(
    catalog: Catalog, new_run: Callable[..., NewRun], result: dict[str, Any]
):
    run = new_run()

    await catalog.runs.open(run)
    queued = await catalog.runs.get(run.id)
    no = await catalog.runs.begin_attempt(run.id, node="left")
    await catalog.runs.attempt_running(run.id, no)
    running = await catalog.runs.get(run.id)
    [image_id] = await catalog.runs.finish(run.id, no, **result)
    done = await catalog.runs.get(run.id)

    assert (queued.status, queued.attempts, queued.node, queued.answer) == (RunStatus.QUEUED, (), None, None)
    assert (queued.prompt, queued.request, queued.seed, queued.requested_model) == (run.prompt, run.request, 7, "dall-e-3")
    assert (running.status, running.node, running.attempts[0].status) == (RunStatus.RUNNING, "left", AttemptStatus.RUNNING)
    assert (done.status, done.effective, done.timings) == (RunStatus.SUCCEEDED, {"steps": 4}, {"denoise_s": 0.5})
    assert done.answer == {"created": 1}
    assert done.attempts[0].status is AttemptStatus.SUCCEEDED
    assert done.finished_at is not None
    assert done.started_at is not None
    assert done.created_at <= done.started_at <= done.finished_at
    assert done.created_at.tzinfo is UTC
    image = await catalog.runs.image(image_id)
    assert done.images == (image,)
    assert (image.seed, image.size_bytes, image.format) == (2**33, 3_000_000_000, "png")


async def test_opening_a_run_again_changes_nothing(catalog: Catalog, new_run: Callable[..., NewRun]):
    run = new_run()
    await catalog.runs.open(run)
    await catalog.runs.begin_attempt(run.id, node="left")
    before = await catalog.runs.get(run.id)

    await catalog.runs.open(new_run(id=run.id, prompt="another", source="node"))

    assert await catalog.runs.get(run.id) == before


async def test_the_result_of_a_fenced_attempt_is_refused_and_nothing_of_it_is_stored(
    catalog: Catalog, new_run: Callable[..., NewRun], new_image: Callable[..., NewImage], result: dict[str, Any]
):
    run = new_run()
    await catalog.runs.open(run)
    first = await catalog.runs.begin_attempt(run.id, node="left")
    await catalog.runs.attempt_running(run.id, first)
    second = await catalog.runs.begin_attempt(run.id, node="right")

    late = result | {"images": [new_image(sha256="cd" * 32)]}
    with pytest.raises(AttemptFenced):
        await catalog.runs.finish(run.id, first, **late)
    with pytest.raises(AttemptFenced):
        await catalog.runs.attempt_running(run.id, first)
    await catalog.runs.finish(run.id, second, **result)
    with pytest.raises(AttemptFenced):
        await catalog.runs.finish(run.id, first, **late)

    record = await catalog.runs.get(run.id)
    assert [attempt.status for attempt in record.attempts] == [AttemptStatus.ABANDONED, AttemptStatus.SUCCEEDED]
    assert [image.sha256 for image in record.images] == ["ab" * 32]
    assert record.node == "right"
    assert await catalog.runs.stored(["ab" * 32, "cd" * 32]) == {"ab" * 32}


async def test_a_result_whose_acknowledgement_got_lost_may_be_sent_again(
    catalog: Catalog, new_run: Callable[..., NewRun], new_image: Callable[..., NewImage], result: dict[str, Any]
):
    run = new_run()
    await catalog.runs.open(run)
    no = await catalog.runs.begin_attempt(run.id, node="left")

    ids = await catalog.runs.finish(run.id, no, **result)

    assert await catalog.runs.finish(run.id, no, **result) == ids
    with pytest.raises(AttemptFenced):
        await catalog.runs.finish(run.id, no, **result | {"images": [new_image(sha256="cd" * 32)]})
    assert len((await catalog.runs.get(run.id)).images) == 1


@pytest.mark.parametrize("end", ["fail", "cancel"])
async def test_nothing_follows_the_end_of_a_run(
    end: str, catalog: Catalog, new_run: Callable[..., NewRun], result: dict[str, Any]
):
    run = new_run()
    await catalog.runs.open(run)
    no = await catalog.runs.begin_attempt(run.id, node="left")

    if end == "fail":
        assert await catalog.runs.fail(run.id, code="oom", message="out of memory")
    else:
        assert await catalog.runs.cancel(run.id, reason="the client left")

    with pytest.raises(AttemptFenced):
        await catalog.runs.finish(run.id, no, **result)
    with pytest.raises(AttemptFenced):
        await catalog.runs.begin_attempt(run.id, node="right")
    assert not await catalog.runs.fail(run.id, code="again", message="")
    assert not await catalog.runs.cancel(run.id, reason="again")
    record = await catalog.runs.get(run.id)
    assert record.error_code == ("oom" if end == "fail" else "cancelled")
    assert record.attempts[0].status is (AttemptStatus.FAILED if end == "fail" else AttemptStatus.ABANDONED)
    assert record.images == ()


async def test_a_failed_attempt_leaves_the_run_open_for_another(
    catalog: Catalog, new_run: Callable[..., NewRun], result: dict[str, Any]
):
    run = new_run()
    await catalog.runs.open(run)
    first = await catalog.runs.begin_attempt(run.id, node="left")

    await catalog.runs.attempt_failed(run.id, first, code="connection_lost", message="gone")
    second = await catalog.runs.begin_attempt(run.id, node="right")
    await catalog.runs.attempt_failed(run.id, first, code="again", message="late news")
    await catalog.runs.finish(run.id, second, **result)

    record = await catalog.runs.get(run.id)
    assert [(each.status, each.error_code) for each in record.attempts] == [
        (AttemptStatus.FAILED, "connection_lost"),
        (AttemptStatus.SUCCEEDED, None),
    ]


async def test_attempts_that_begin_at_once_get_different_numbers_and_only_the_last_counts(
    catalog: Catalog, new_run: Callable[..., NewRun], result: dict[str, Any]
):
    run = new_run()
    await catalog.runs.open(run)

    numbers = await asyncio.gather(*(catalog.runs.begin_attempt(run.id, node=f"n{i}") for i in range(10)))
    outcomes = await asyncio.gather(*(catalog.runs.finish(run.id, no, **result) for no in numbers), return_exceptions=True)

    assert sorted(numbers) == list(range(1, 11))
    assert [type(outcome) for no, outcome in zip(numbers, outcomes, strict=True) if no != 10] == [AttemptFenced] * 9
    assert len((await catalog.runs.get(run.id)).images) == 1


async def test_two_runs_may_have_the_same_picture(
    catalog: Catalog, new_run: Callable[..., NewRun], new_image: Callable[..., NewImage], result: dict[str, Any]
):
    runs = [new_run(), new_run()]
    twice = result | {"images": [new_image(), new_image(index=1)]}
    for run in runs:
        await catalog.runs.open(run)
    attempts = [await catalog.runs.begin_attempt(run.id, node="left") for run in runs]

    ids = await asyncio.gather(*(catalog.runs.finish(r.id, no, **twice) for r, no in zip(runs, attempts, strict=True)))

    assert len({image_id for each in ids for image_id in each}) == 4


async def test_runs_are_listed_newest_first_in_pages(catalog: Catalog, new_run: Callable[..., NewRun]):
    runs = [new_run(id=f"run_0000000000000000000000000{i}", model="even" if i % 2 == 0 else "odd") for i in range(5)]
    for run in runs:
        await catalog.runs.open(run)
    await catalog.runs.cancel(runs[0].id, reason="")

    first = await catalog.runs.list(limit=3)
    second = await catalog.runs.list(limit=3, after=first[-1].id)

    assert [run.id for run in first + second] == [run.id for run in reversed(runs)]
    assert [run.id for run in await catalog.runs.list(model="odd")] == [runs[3].id, runs[1].id]
    assert [run.id for run in await catalog.runs.list(status=RunStatus.CANCELLED)] == [runs[0].id]
    assert await catalog.runs.list(model="neither") == []


async def test_what_is_not_there_is_not_found(catalog: Catalog, new_run: Callable[..., NewRun], result: dict[str, Any]):
    run = new_run()
    await catalog.runs.open(run)
    for asking in (
        catalog.runs.get("run_x"),
        catalog.runs.image("img_x"),
        catalog.runs.begin_attempt("run_x", node="left"),
        catalog.runs.attempt_failed("run_x", 1, code="", message=""),
        catalog.runs.fail("run_x", code="", message=""),
        catalog.runs.tag("run_x", ["a"]),
        catalog.runs.finish(run.id, 1, **result),
    ):
        with pytest.raises(NotFound):
            await asking


async def test_a_run_nobody_gives_a_sign_of_life_of_is_closed_as_interrupted(
    catalog: Catalog, new_run: Callable[..., NewRun], result: dict[str, Any]
):
    dead, alive, done = new_run(), new_run(), new_run()
    for run in (dead, alive, done):
        await catalog.runs.open(run)
    await catalog.runs.begin_attempt(dead.id, node="left")
    await catalog.runs.finish(done.id, await catalog.runs.begin_attempt(done.id, node="left"), **result)
    marked = utc_now()
    await catalog.runs.heartbeat([alive.id, done.id])

    report = await catalog.runs.sweep(older_than_s=60, now=marked + timedelta(seconds=60))
    again = await catalog.runs.sweep(older_than_s=60, now=marked + timedelta(seconds=60))

    assert (report.runs_closed, report.attempts_closed) == ((dead.id,), 1)
    assert again.runs_closed == ()
    record = await catalog.runs.get(dead.id)
    assert (record.status, record.error_code) == (RunStatus.FAILED, "interrupted")
    assert record.attempts[0].status is AttemptStatus.FAILED
    assert (await catalog.runs.get(alive.id)).status is RunStatus.QUEUED
    assert (await catalog.runs.get(done.id)).status is RunStatus.SUCCEEDED


async def test_tags_add_up(catalog: Catalog, new_run: Callable[..., NewRun]):
    run = new_run()
    await catalog.runs.open(run)

    await catalog.runs.tag(run.id, ["favourite", " blue "])
    await catalog.runs.tag(run.id, ["blue", "anime"])

    assert (await catalog.runs.get(run.id)).tags == ("anime", "blue", "favourite")
    with pytest.raises(InvalidRequest):
        await catalog.runs.tag(run.id, [" "])


async def test_text_a_database_cannot_hold_does_not_fail_a_run(catalog: Catalog, new_run: Callable[..., NewRun]):
    run = new_run(
        prompt="nul \x00 half \ud800", request={"prompt": "nul \x00", "deep": [{"nan": float("nan")}], "large": 2**70}
    )

    await catalog.runs.open(run)

    record = await catalog.runs.get(run.id)
    assert (record.prompt, record.request) == (
        "nul \ufffd half ?",
        {"prompt": "nul \ufffd", "deep": [{"nan": None}], "large": 2**70},
    )


async def test_of_a_request_whose_text_is_good_only_the_numbers_that_json_lacks_are_changed(
    catalog: Catalog, new_run: Callable[..., NewRun]
):
    run = new_run(request={"prompt": "a “cat”", "scale": float("nan"), "sizes": (1, 2.5, float("inf"))})

    await catalog.runs.open(run)

    assert (await catalog.runs.get(run.id)).request == {"prompt": "a “cat”", "scale": None, "sizes": [1, 2.5, None]}


@pytest.mark.parametrize("column", ["result_key", "parent_id"])
async def test_runs_that_have_what_few_have_are_found_by_an_index_of_those(catalog: Catalog, column: str):
    async with catalog.runs._db.read() as session:
        on_postgres = (await session.connection()).dialect.name == "postgresql"
        if on_postgres:
            await session.execute(text("SET LOCAL enable_seqscan = off"))
        query = select(Run.id).where(Run.__table__.c[column] == "x").compile(compile_kwargs={"literal_binds": True})
        explain = "EXPLAIN" if on_postgres else "EXPLAIN QUERY PLAN"
        plan = (await session.execute(text(f"{explain} {query}"))).all()

    assert f"ix_runs_{column}" in str(plan)
