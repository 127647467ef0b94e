"""Writes behind: a moment later, together, and as if at once for whoever asks."""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from common.catalog import AttemptFenced, AttemptStatus, Catalog, NewImage, NewRun, RunStatus, behind, migrate, sqlite_url
from common.catalog.behind import WritesBehind
from common.errors import CatalogUnavailable, InvalidRequest

MakeRun = Callable[..., NewRun]
MakeImage = Callable[..., NewImage]
LONG_S = 3600.0


class Disk:
    """Commits groups while it is there; remembers them."""

    def __init__(self) -> None:
        self.groups: list[list[str]] = []
        self.error: Exception | None = None
        self.is_slow = False
        self.came = asyncio.Event()

    def at_once(self, items: Sequence[str]) -> bool:
        if self.error is not None or self.is_slow or "bad" in items:
            return False
        self._take(items)
        return True

    async def write(self, items: Sequence[str]) -> None:
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        if "bad" in items:
            raise InvalidRequest("The catalog cannot hold a value of this request.")
        self._take(items)

    def _take(self, items: Sequence[str]) -> None:
        self.groups.append(list(items))
        self.came.set()


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def writes(disk: Disk) -> WritesBehind[str]:
    return WritesBehind(disk.write, at_once=disk.at_once)


@pytest.mark.parametrize("is_slow", [False, True])
async def test_what_comes_within_a_moment_is_written_together(
    disk: Disk, writes: WritesBehind[str], is_slow: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(behind, "WITHIN_S", 0.5)  # However slow this machine is just now.
    disk.is_slow = is_slow
    for name in "abc":
        writes.put(name, name)
        await asyncio.sleep(0)
    assert disk.groups == []

    await asyncio.wait_for(disk.came.wait(), 10)

    assert disk.groups == [["a", "b", "c"]]


@pytest.mark.parametrize("is_slow", [False, True])
async def test_who_asks_for_one_has_it_written_now_and_with_it_all_that_wait(
    disk: Disk, writes: WritesBehind[str], is_slow: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(behind, "WITHIN_S", LONG_S)
    disk.is_slow = is_slow
    for name in "ab":
        writes.put(name, name)

    await writes.written("unknown")
    assert disk.groups == []
    await asyncio.gather(writes.written("a"), writes.written("b"), writes.all_written())
    writes.put("c", "c")
    await writes.all_written()

    assert disk.groups == [["a", "b"], ["c"]]


async def test_what_a_database_that_is_away_did_not_take_is_offered_again_until_it_does(
    disk: Disk, writes: WritesBehind[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(behind, "AGAIN_AFTER_S", 0.01)
    disk.error = CatalogUnavailable()
    writes.put("a", "a")
    with pytest.raises(CatalogUnavailable):
        await writes.written("a")
    assert writes.falls_behind
    writes.put("b", "b")
    with pytest.raises(CatalogUnavailable):
        await writes.all_written()

    disk.error = None
    await asyncio.wait_for(disk.came.wait(), 10)
    await writes.all_written()

    assert disk.groups == [["a", "b"]]
    assert not writes.falls_behind


async def test_what_cannot_be_written_at_the_end_is_lost_and_never_offered_again(
    disk: Disk, writes: WritesBehind[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(behind, "AGAIN_AFTER_S", 0.001)
    disk.error = CatalogUnavailable()
    writes.put("a", "a")
    with pytest.raises(CatalogUnavailable):
        await writes.close()

    disk.error = None
    other = WritesBehind(disk.write, at_once=disk.at_once)
    other.put("b", "b")  # Written later than an item would be that is offered again.
    await asyncio.wait_for(disk.came.wait(), 10)

    assert disk.groups == [["b"]]


async def test_an_item_that_cannot_be_written_costs_the_others_nothing_and_is_not_waited_for(
    disk: Disk, writes: WritesBehind[str]
):
    for name in ("a", "bad", "b"):
        writes.put(name, name)

    await writes.written("bad")
    await writes.all_written()

    assert disk.groups == [["a"], ["b"]]


async def test_what_is_dropped_is_not_written(disk: Disk, writes: WritesBehind[str]):
    for name in "ab":
        writes.put(name, name)
    writes.drop("a")

    await writes.all_written()

    assert disk.groups == [["b"]]


async def test_a_group_that_fails_unforeseen_at_once_is_written_after_all(disk: Disk):
    def broken(_: Sequence[str]) -> bool:
        raise OverflowError

    writes = WritesBehind(disk.write, at_once=broken)
    writes.put("a", "a")
    await writes.written("a")

    assert disk.groups == [["a"]]


async def test_for_its_own_process_a_run_that_is_opened_soon_is_recorded(catalog: Catalog, new_run: MakeRun):
    found, listed, again, ended, tagged = runs = [new_run() for _ in range(5)]
    catalog.runs.open_soon(found, node="a")
    stored = await catalog.runs.get(found.id)
    assert (stored.status, stored.prompt) == (RunStatus.QUEUED, found.prompt)
    assert [(each.no, each.node, each.status) for each in stored.attempts] == [(1, "a", AttemptStatus.SENT)]

    catalog.runs.open_soon(listed, node="a")
    assert [run.id for run in await catalog.runs.list(limit=1)] == [listed.id]
    for run in runs[2:]:
        catalog.runs.open_soon(run, node="a")
    assert await catalog.runs.begin_attempt(again.id, node="b") == 2
    assert await catalog.runs.cancel(ended.id, reason="left")
    await catalog.runs.tag(tagged.id, ["blue"])
    failed = new_run()
    catalog.runs.open_soon(failed, node="a")
    await catalog.runs.attempt_failed(failed.id, 1, code="busy", message="no place")
    assert [each.status for each in (await catalog.runs.get(failed.id)).attempts] == [AttemptStatus.FAILED]


async def test_for_others_it_is_recorded_in_a_moment_and_at_the_latest_when_the_catalog_is_closed(
    catalog: Catalog, catalog_url: str, new_run: MakeRun, monkeypatch: pytest.MonkeyPatch
):
    other = await Catalog.open(catalog_url)
    monkeypatch.setattr(behind, "WITHIN_S", LONG_S)
    run = new_run()
    other.runs.open_soon(run, node="a")
    await other.close()

    assert (await catalog.runs.get(run.id)).prompt == run.prompt


@pytest.mark.parametrize("first", ["router", "node", "both"])
async def test_router_and_node_record_one_run_between_them_whoever_comes_first(
    catalog: Catalog, catalog_url: str, new_run: MakeRun, new_image: MakeImage, first: str
):
    of_the_router, run = await Catalog.open(catalog_url), new_run()

    async def opened() -> None:
        of_the_router.runs.open_soon(run, node="a")
        await of_the_router.runs.settled()

    async def taken_on() -> None:
        await catalog.runs.take_on(run, 1, node="a")

    if first == "both":
        await asyncio.gather(opened(), taken_on())
    else:
        for each in (opened, taken_on) if first == "router" else (taken_on, opened):
            await each()
    stored = await catalog.runs.get(run.id)
    await catalog.runs.finish(run.id, 1, images=[new_image()], effective={}, timings={}, answer={})
    await of_the_router.close()

    assert stored.status is RunStatus.RUNNING
    assert [(each.no, each.node, each.status) for each in stored.attempts] == [(1, "a", AttemptStatus.RUNNING)]
    assert (await catalog.runs.get(run.id)).status is RunStatus.SUCCEEDED


async def test_a_node_takes_on_only_the_attempt_that_counts(catalog: Catalog, new_run: MakeRun):
    run = new_run()
    await catalog.runs.take_on(run, 2, node="b")  # Its router, which keeps another catalog, tried once before.
    with pytest.raises(AttemptFenced):
        await catalog.runs.take_on(run, 1, node="a")
    await catalog.runs.take_on(run, 3, node="c")

    attempts = (await catalog.runs.get(run.id)).attempts
    assert [(each.no, each.node, each.status) for each in attempts] == [
        (2, "b", AttemptStatus.ABANDONED),
        (3, "c", AttemptStatus.RUNNING),
    ]
    await catalog.runs.cancel(run.id, reason="left")
    with pytest.raises(AttemptFenced):
        await catalog.runs.take_on(run, 4, node="d")


async def test_what_is_decided_of_a_run_is_kept_though_the_run_was_opened_in_this_moment(catalog: Catalog, new_run: MakeRun):
    run = new_run()
    catalog.runs.open_soon(run, node="a")

    await catalog.decisions.add({(run.id, 1): {"node": "a"}})

    assert await catalog.decisions.of(run.id) == [{"node": "a"}]


async def test_a_run_that_ended_while_the_catalog_was_away_is_not_recorded_as_open_afterwards(
    tmp_path: Path, new_run: MakeRun, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(behind, "AGAIN_AFTER_S", 0.01)
    url = sqlite_url(tmp_path / "catalog.db")
    await migrate(url)
    catalog = await Catalog.open(f"{url}?timeout=0.1")
    holder = sqlite3.connect(tmp_path / "catalog.db", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    ended, lives = new_run(), new_run()
    for run in (ended, lives):
        catalog.runs.open_soon(run, node="a")

    with pytest.raises(CatalogUnavailable):
        await catalog.runs.fail(ended.id, code="node_error", message="no")
    assert not catalog.runs.may_be_opened_soon
    holder.execute("ROLLBACK")
    async with asyncio.timeout(10):
        while not catalog.runs.may_be_opened_soon:
            await asyncio.sleep(0.01)

    assert [run.id for run in await catalog.runs.list()] == [lives.id]
    holder.close()
    await catalog.close()


async def test_runs_may_be_sent_before_they_are_recorded_only_where_the_catalog_is_a_file(catalog: Catalog, catalog_url: str):
    assert catalog.runs.may_be_opened_soon is catalog_url.startswith("sqlite")
