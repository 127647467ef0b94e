"""What many ask for at once is read once, and nobody's leaving or failure is another's."""

import asyncio

import pytest

from common.catalog.shared_reads import SharedReads


class Shelf:
    """Gives what is on it when let; counts the readings."""

    def __init__(self) -> None:
        self.readings = 0
        self.began = asyncio.Event()
        self.free = asyncio.Event()
        self.holds = "old"

    async def read(self, key: str) -> str:
        self.readings += 1
        found = self.holds
        self.began.set()
        await self.free.wait()
        if key == "gone":
            raise LookupError(key)
        return f"{found} {key}"


async def test_all_who_ask_at_once_share_one_reading_and_the_next_is_a_new_one():
    shelf = Shelf()
    reads = SharedReads(shelf.read)
    asking = [asyncio.create_task(reads.get("book")) for _ in range(5)]
    asking.append(asyncio.create_task(reads.get("map")))
    await shelf.began.wait()
    asking[0].cancel()
    shelf.free.set()

    assert await asyncio.gather(*asking[1:]) == ["old book"] * 4 + ["old map"]
    assert shelf.readings == 2
    await reads.get("book")
    assert shelf.readings == 3


async def test_who_asks_after_a_change_is_not_given_what_was_read_before_it():
    shelf = Shelf()
    reads = SharedReads(shelf.read)
    before = asyncio.create_task(reads.get("book"))
    await shelf.began.wait()
    shelf.holds = "new"
    reads.forget()
    after = asyncio.create_task(reads.get("book"))
    shelf.free.set()

    assert await asyncio.gather(before, after) == ["old book", "new book"]


async def test_a_reading_that_fails_fails_for_all_who_waited_and_for_nobody_later():
    shelf = Shelf()
    shelf.free.set()
    reads = SharedReads(shelf.read)

    results = await asyncio.gather(*(reads.get("gone") for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [LookupError] * 3
    with pytest.raises(LookupError):
        await reads.get("gone")
    assert shelf.readings == 2
