"""Runs made in parts: the whole is what its parts are, and ends with them or ends them."""

from collections.abc import Callable
from datetime import timedelta

import pytest

from common.catalog import AttemptFenced, Catalog, NewImage, NewRun, RunStatus, new_id
from common.catalog.parts import part_id
from common.clock import utc_now

MakeRun = Callable[..., NewRun]
MakeImage = Callable[..., NewImage]


@pytest.fixture
async def whole(catalog: Catalog, new_run: MakeRun) -> str:
    """A run of three pictures in two parts, each sent to a node."""
    run_id = new_id("run")
    await catalog.runs.open(new_run(id=run_id, n=3, seed=7))
    for index, (seed, n) in enumerate([(7, 2), (9, 1)]):
        part = new_run(id=part_id(run_id, index), n=n, seed=seed, parent_id=run_id)
        await catalog.runs.open_new(part, first_node=f"node{index}")
    return run_id


async def finish(catalog: Catalog, run_id: str, new_image: MakeImage, *seeds: int) -> None:
    images = [new_image(index=index, sha256=f"{seed:02}" * 32, seed=seed) for index, seed in enumerate(seeds)]
    await catalog.runs.finish(run_id, 1, images=images, effective={}, timings={"total": 2.0, "queued": 0.5}, answer={})


async def join(catalog: Catalog, run_id: str) -> None:
    await catalog.parts.join(run_id, effective={"steps": 4}, timings={"total": 2.0}, answer={"id": run_id})


async def test_the_whole_has_the_pictures_of_its_parts_once_all_have_succeeded(
    catalog: Catalog, whole: str, new_image: MakeImage
):
    await finish(catalog, part_id(whole, 1), new_image, 9)
    with pytest.raises(AttemptFenced):
        await join(catalog, whole)
    assert (await catalog.runs.get(whole)).images == ()
    await finish(catalog, part_id(whole, 0), new_image, 7, 8)

    await join(catalog, whole)

    run = await catalog.runs.get(whole)
    assert (run.status, run.effective) == (RunStatus.SUCCEEDED, {"steps": 4})
    assert [(image.index, image.seed, image.run_id) for image in run.images] == [
        (0, 7, part_id(whole, 0)),
        (1, 8, part_id(whole, 0)),
        (2, 9, part_id(whole, 1)),
    ]
    assert [each.id for each in await catalog.runs.list()] == [whole]


async def test_the_key_is_billed_for_the_whole_and_not_before(catalog: Catalog, whole: str, new_image: MakeImage):
    await finish(catalog, part_id(whole, 0), new_image, 7, 8)
    await finish(catalog, part_id(whole, 1), new_image, 9)
    assert await catalog.quotas.usage(since="2026-01-01") == []

    await join(catalog, whole)

    (usage,) = await catalog.quotas.usage(since="2026-01-01")
    assert (usage.runs, usage.images, usage.gpu_s) == (1, 3, 3.0)


async def test_a_whole_that_ends_otherwise_ends_its_parts_and_fences_them(catalog: Catalog, whole: str, new_image: MakeImage):
    await catalog.runs.attempt_running(part_id(whole, 1), 1)
    assert (await catalog.runs.get(whole)).status is RunStatus.RUNNING

    await catalog.runs.cancel(whole, reason="The client left.")

    run = await catalog.runs.get(whole)
    assert [each.status for each in (run, *run.parts)] == [RunStatus.CANCELLED] * 3
    with pytest.raises(AttemptFenced):
        await finish(catalog, part_id(whole, 1), new_image, 9)
    with pytest.raises(AttemptFenced):
        await join(catalog, whole)


async def test_a_sweep_closes_a_whole_with_its_parts(catalog: Catalog, whole: str):
    report = await catalog.runs.sweep(older_than_s=60, now=utc_now() + timedelta(seconds=90))

    run = await catalog.runs.get(whole)
    assert whole in report.runs_closed
    assert {each.error_code for each in (run, *run.parts)} == {"interrupted"}
    assert all(attempt.finished_at is not None for part in run.parts for attempt in part.attempts)


async def test_a_run_that_was_carried_as_one_since_is_not_joined(catalog: Catalog, whole: str, new_image: MakeImage):
    await finish(catalog, part_id(whole, 0), new_image, 7, 8)
    await finish(catalog, part_id(whole, 1), new_image, 9)
    await catalog.runs.begin_attempt(whole, node="another")

    with pytest.raises(AttemptFenced):
        await join(catalog, whole)
    await finish(catalog, whole, new_image, 7, 8, 9)

    run = await catalog.runs.get(whole)
    assert [image.run_id for image in run.images] == [whole] * 3
    assert len(run.parts) == 2
