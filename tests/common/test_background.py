"""Work beside other work: neither waits for the other, and neither is left behind."""

import asyncio

import pytest

from common.web.background import beside

pytestmark = pytest.mark.anyio


class Told(Exception):
    """What one of the two fails with."""


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
