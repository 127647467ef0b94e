"""Work beside other work: neither waits for the other, and neither is left behind."""

import asyncio

import pytest

from common.web.background import beside, set_within

pytestmark = pytest.mark.anyio


class Told(Exception):
    """What one of the two fails with."""


@pytest.mark.parametrize("turns", range(4))
async def test_who_is_cancelled_in_the_moment_of_being_woken_hears_of_it(turns: int):
    event = asyncio.Event()
    waiting = asyncio.create_task(set_within(event, 60))
    for _ in range(3):
        await asyncio.sleep(0)

    event.set()
    for _ in range(turns):
        await asyncio.sleep(0)

    if waiting.cancel():
        with pytest.raises(asyncio.CancelledError):
            await waiting
    else:
        assert turns > 0
        assert await waiting


async def test_an_event_is_waited_for_no_longer_than_that():
    event = asyncio.Event()
    assert not await set_within(event, 0.01)

    event.set()

    assert await set_within(event, 0.01)


async def test_both_are_done_at_once():
    began = asyncio.Event()

    async def main() -> str:
        began.set()
        return "made"

    async def aside() -> None:
        await began.wait()

    assert await beside(main(), aside()) == "made"


async def test_when_what_runs_aside_fails_the_main_work_ends():
    ended: list[str] = []

    async def main() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("main")

    async def aside() -> None:
        raise Told

    with pytest.raises(Told):
        await beside(main(), aside())
    assert ended == ["main"]


async def test_when_the_main_work_fails_what_runs_aside_is_brought_to_its_end():
    failed, ended = asyncio.Event(), []

    async def main() -> None:
        failed.set()
        raise Told

    async def aside() -> None:
        await failed.wait()
        await asyncio.sleep(0)
        ended.append("aside")

    with pytest.raises(Told):
        await beside(main(), aside())
    assert ended == ["aside"]


async def test_a_caller_that_is_cancelled_takes_the_main_work_along():
    began, ended = asyncio.Event(), []

    async def main() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("main")

    async def aside() -> None:
        ended.append("aside")

    task = asyncio.create_task(beside(main(), aside()))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sorted(ended) == ["aside", "main"]
