"""Writes that come together are committed together, and none pays for another."""

import asyncio
from collections.abc import Callable, Sequence

import pytest

from common.catalog import AttemptStatus, Catalog, NewRun, RunStatus
from common.catalog.grouped import GroupedWrites
from common.errors import CatalogUnavailable, InvalidRequest

MakeRun = Callable[..., NewRun]


class Disk:
    """Commits groups when let; remembers them."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.free = asyncio.Event()
        self.error: Exception | None = None

    async def write(self, items: Sequence[str]) -> None:
        await self.free.wait()
        if self.error is not None:
            raise self.error
        if "bad" in items:
            raise InvalidRequest("The catalog cannot hold a value of this request.")
        self.groups.append(list(items))


async def test_what_comes_while_a_commit_is_under_way_shares_the_next():
    disk = Disk()
    grouped = GroupedWrites(disk.write)
    puts = [asyncio.create_task(grouped.put("first"))]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    puts += [asyncio.create_task(grouped.put(name)) for name in ("second", "third")]
    await asyncio.sleep(0)

    disk.free.set()
    await asyncio.gather(*puts)
    await grouped.put("fourth")

    assert disk.groups == [["first"], ["second", "third"], ["fourth"]]


async def test_what_needs_no_waiting_is_committed_with_all_that_comes_before_the_loops_next_turn():
    disk, at_once, free = Disk(), list[list[str]](), [True, False, True]

    def written(items: Sequence[str]) -> bool:
        if now := free.pop(0):
            at_once.append(list(items))
        return now

    grouped = GroupedWrites(disk.write, at_once=written)
    disk.free.set()
    for names in (["a", "b"], ["c", "d"], ["e"]):
        await asyncio.gather(*(grouped.put(name) for name in names))

    assert at_once == [["a", "b"], ["e"]]
    assert disk.groups == [["c", "d"]]


async def test_what_fails_unforeseen_at_once_is_written_after_all():
    disk = Disk()
    disk.free.set()

    def broken(_: Sequence[str]) -> bool:
        raise OverflowError

    grouped = GroupedWrites(disk.write, at_once=broken)
    await asyncio.wait_for(asyncio.gather(grouped.put("a"), grouped.put("b")), 10)

    assert disk.groups == [["a", "b"]]


async def test_an_item_that_cannot_be_written_costs_the_others_nothing():
    disk = Disk()
    disk.free.set()
    grouped = GroupedWrites(disk.write)

    results = await asyncio.gather(*(grouped.put(name) for name in ("a", "bad", "b")), return_exceptions=True)

    assert [type(result) for result in results] == [type(None), InvalidRequest, type(None)]
    assert disk.groups == [["a"], ["b"]]


async def test_all_hear_that_the_disk_is_gone_and_the_next_is_written_when_it_is_back():
    disk = Disk()
    disk.free.set()
    disk.error = CatalogUnavailable()
    grouped = GroupedWrites(disk.write)

    results = await asyncio.gather(*(grouped.put(name) for name in "ab"), return_exceptions=True)
    disk.error = None
    await grouped.put("c")

    assert [type(result) for result in results] == [CatalogUnavailable] * 2
    assert disk.groups == [["c"]]


async def test_who_is_cancelled_was_either_written_or_never_will_be():
    disk = Disk()
    grouped = GroupedWrites(disk.write)
    under_way = asyncio.create_task(grouped.put("under way"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    waiting = asyncio.create_task(grouped.put("waiting"))
    await asyncio.sleep(0)

    under_way.cancel()
    waiting.cancel()
    await asyncio.wait({waiting})
    assert not under_way.done()
    disk.free.set()
    await asyncio.wait({under_way})
    await grouped.put("last")

    assert under_way.cancelled()
    assert disk.groups == [["under way"], ["last"]]


async def test_new_runs_are_recorded_with_their_first_attempts(catalog: Catalog, new_run: MakeRun):
    runs = [new_run() for _ in range(20)]

    await asyncio.gather(*(catalog.runs.open_new(run, first_node="a" if n % 2 else None) for n, run in enumerate(runs)))

    for number, run in enumerate(runs):
        stored = await catalog.runs.get(run.id)
        assert (stored.status, stored.prompt) == (RunStatus.QUEUED, run.prompt)
        assert [(a.no, a.node, a.status) for a in stored.attempts] == ([(1, "a", AttemptStatus.SENT)] if number % 2 else [])
        assert await catalog.runs.begin_attempt(run.id, node="b") == 1 + number % 2


@pytest.mark.parametrize("first_node", [None, "a"])
async def test_an_id_that_is_recorded_already_is_refused_as_new(catalog: Catalog, new_run: MakeRun, first_node: str | None):
    run = new_run()
    await catalog.runs.open_new(run, first_node="a")

    with pytest.raises(CatalogUnavailable):
        await catalog.runs.open_new(run, first_node=first_node)

    assert len((await catalog.runs.get(run.id)).attempts) == 1


class Compared:
    """An item that counts how often any is compared with another."""

    times = 0

    def __eq__(self, other: object) -> bool:
        Compared.times += 1
        return self is other

    __hash__ = object.__hash__


async def test_those_who_leave_are_not_looked_for_among_all_who_wait():
    written, free = list[Sequence[Compared]](), asyncio.Event()

    async def write(items: Sequence[Compared]) -> None:
        await free.wait()
        written.append(items)

    grouped = GroupedWrites(write)
    first = asyncio.create_task(grouped.put(Compared()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    leaving = [asyncio.create_task(grouped.put(Compared())) for _ in range(1000)]
    await asyncio.sleep(0)

    # The last first, so that from the front each would be behind all others.
    for each in reversed(leaving):
        each.cancel()
    await asyncio.gather(*leaving, return_exceptions=True)
    free.set()
    await first

    assert [len(items) for items in written] == [1]
    assert Compared.times == 0
