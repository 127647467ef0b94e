"""Work on a thread of its own."""

import asyncio
import threading

import pytest

from common.catalog.own_thread import OwnThread


async def test_calls_are_made_one_after_another_on_one_thread_that_is_not_the_callers():
    thread, seen = OwnThread("test"), list[tuple[int, int]]()

    def work(number: int) -> int:
        seen.append((number, threading.get_ident()))
        return number

    found = await asyncio.gather(*(thread.call(lambda number=number: work(number)) for number in range(20)))

    assert found == list(range(20))
    assert [number for number, _ in seen] == list(range(20))
    idents = {ident for _, ident in seen}
    assert len(idents) == 1
    assert threading.get_ident() not in idents
    thread.end()


async def test_what_fails_is_told_to_its_caller_and_the_next_is_done():
    thread = OwnThread("test")

    with pytest.raises(ZeroDivisionError):
        await thread.call(lambda: 1 // 0)

    assert await thread.call(lambda: "done") == "done"
    thread.end()


async def test_a_call_that_is_cancelled_is_made_all_the_same():
    thread, began, go_on, done = OwnThread("test"), threading.Event(), threading.Event(), list[str]()

    def hold() -> None:
        began.set()
        go_on.wait(10)
        done.append("first")

    first = asyncio.create_task(thread.call(hold))
    second = asyncio.create_task(thread.call(lambda: done.append("second")))
    await asyncio.to_thread(began.wait, 10)
    first.cancel()
    second.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    go_on.set()

    await thread.call(lambda: None)
    assert first.cancelled()
    assert second.cancelled()
    assert done == ["first", "second"]
    thread.end()
