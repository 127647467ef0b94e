"""First come, first served; bounded; cancelled at once; and predictions from what was measured."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from common.errors import Conflict, RunCancelled, TooManyRequests, Unavailable
from node.batch_table import Wanted
from node.scheduler import Job, Pace, Scheduler


def job(name: str, *, model: str = "m", units: float = 10.0) -> Job:
    return Job(name, model, units, steps=10)


def scheduler(*, max_queued: int = 2, resident: bool = True) -> Scheduler:
    return Scheduler(max_queued=max_queued, pace=Pace(), is_resident=lambda model: resident)


class Journal:
    """Runs jobs, and writes down the order in which they came to the device."""

    def __init__(self, runs: Scheduler) -> None:
        self._runs = runs
        self.began: list[str] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.may_end = asyncio.Event()

    async def run(self, each: Job) -> None:
        async with self._runs.place(each):
            await each.turn.wait()
            self.began.append(each.run_id)
            await self.may_end.wait()


async def settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_runs_take_the_device_one_at_a_time_in_the_order_they_came():
    runs = scheduler()
    journal = Journal(runs)
    tasks = [asyncio.create_task(journal.run(job(name))) for name in "abc"]
    await settle()
    assert journal.began == ["a"]
    assert [each.run_id for each in runs.jobs] == ["a", "b", "c"]

    journal.may_end.set()
    await asyncio.gather(*tasks)

    assert journal.began == ["a", "b", "c"]
    assert runs.jobs == ()


async def test_a_full_queue_refuses_and_says_when_to_come_back():
    runs = scheduler(max_queued=1)
    journal = Journal(runs)
    tasks = [asyncio.create_task(journal.run(job(name))) for name in "ab"]
    await settle()

    with pytest.raises(TooManyRequests, match="1 runs are waiting") as refused:
        await journal.run(job("c"))

    assert refused.value.retry_after_s == 10
    journal.may_end.set()
    await asyncio.gather(*tasks)


async def test_a_waiting_run_is_cancelled_at_once_and_the_next_moves_up():
    runs = scheduler()
    journal = Journal(runs)
    a, b, c = (asyncio.create_task(journal.run(job(name))) for name in "abc")
    await settle()

    assert runs.cancel("b")
    with pytest.raises(RunCancelled):
        await b
    assert [each.run_id for each in runs.jobs] == ["a", "c"]
    journal.may_end.set()
    await asyncio.gather(a, c)
    assert journal.began == ["a", "c"]


async def test_a_client_that_leaves_is_not_told_that_someone_cancelled():
    runs = scheduler()
    task = asyncio.create_task(Journal(runs).run(job("a")))
    await settle()
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert runs.jobs == ()


async def test_what_is_not_here_cannot_be_cancelled():
    assert not scheduler().cancel("nobody")


async def test_a_run_being_recorded_lets_the_next_begin_and_can_no_longer_be_cancelled():
    runs = scheduler()
    journal = Journal(runs)
    first = job("a")
    a, b = asyncio.create_task(journal.run(first)), asyncio.create_task(journal.run(job("b")))
    await settle()

    runs.leave_device(first)
    await settle()

    assert journal.began == ["a", "b"]
    assert not runs.cancel("a")
    journal.may_end.set()
    await asyncio.gather(a, b)


async def test_a_draining_node_takes_nothing_new_and_ends_what_it_has():
    runs = scheduler()
    journal = Journal(runs)
    a = asyncio.create_task(journal.run(job("a")))
    await settle()
    runs.draining = True

    with pytest.raises(Unavailable, match="draining"):
        await journal.run(job("b"))
    journal.may_end.set()
    await a
    runs.draining = False
    await journal.run(job("b"))
    assert journal.began == ["a", "b"]


async def test_one_run_cannot_be_here_twice():
    runs = scheduler()
    journal = Journal(runs)
    a = asyncio.create_task(journal.run(job("a")))
    await settle()

    with pytest.raises(Conflict):
        await journal.run(job("a"))
    journal.may_end.set()
    await a


async def test_waiting_is_predicted_from_measured_work_and_loads():
    runs = scheduler(resident=False)
    pace = Pace()
    pace.learn_run("m", seconds=5, work_units=10)
    pace.learn_load("m", 30)
    runs = Scheduler(max_queued=5, pace=pace, is_resident=lambda model: False)
    journal = Journal(runs)
    first = job("a")
    tasks = [asyncio.create_task(journal.run(each)) for each in (first, job("b"))]
    await settle()
    first.step = 5

    assert runs.wait_s() == pytest.approx(0.5 * 5 + 5 + 30)
    journal.may_end.set()
    await asyncio.gather(*tasks)


def test_measurements_are_smoothed_and_unknown_models_are_taken_for_the_slowest():
    pace = Pace()
    pace.learn_run("m", 10, 10)
    pace.learn_run("m", 20, 10)

    assert pace.seconds_per_unit["m"] == pytest.approx(1.3)
    assert pace.run_s("other", 2) == pytest.approx(2.6)
    assert Pace().run_s("any", 3) == 3


async def test_between_runs_nobody_is_at_work_and_who_waits_goes_on_waiting():
    runs = scheduler()
    journal = Journal(runs)
    first = asyncio.create_task(journal.run(job("a")))
    await settle()
    between, may_go_on = asyncio.Event(), asyncio.Event()

    async def hold_up() -> None:
        async with runs.between_runs():
            between.set()
            await may_go_on.wait()

    holding = asyncio.create_task(hold_up())
    waiting = asyncio.create_task(journal.run(job("b")))
    await settle()
    assert (journal.began, between.is_set()) == (["a"], False)

    journal.may_end.set()
    await first
    await settle()
    assert (journal.began, between.is_set()) == (["a"], True)
    may_go_on.set()
    await asyncio.gather(holding, waiting)

    assert journal.began == ["a", "b"]


async def test_an_idle_device_is_between_runs_at_once():
    runs = scheduler()

    async with asyncio.timeout(10), runs.between_runs():
        assert runs.jobs == ()


def stepping(name: str, *, key: str | None = "k", pictures: int = 1) -> Job:
    return Job(name, "m", 10.0, steps=10 * pictures, pictures=pictures, shared_key=key, shape="s", steps_key=key)


def up_to(most: int) -> Scheduler:
    """Lets so many pictures be at work."""

    def joins(more: Wanted, at_work: Sequence[Wanted]) -> int | None:
        pictures = more.pictures + sum(each.pictures for each in at_work)
        return pictures if pictures <= most else None

    return Scheduler(max_queued=8, pace=Pace(), is_resident=lambda model: True, joins=joins)


async def held(runs: Scheduler, *jobs: Job) -> Journal:
    """Jobs that came one after another."""
    journal = Journal(runs)
    for each in jobs:
        journal.tasks.append(asyncio.create_task(journal.run(each)))
        await settle()
    return journal


async def test_who_comes_late_joins_those_at_work_while_that_pays():
    jobs = [stepping(name) for name in "abc"]
    journal = await held(up_to(2), *jobs)

    assert journal.began == ["a", "b"]
    assert jobs[0].share is jobs[1].share is not None

    journal.may_end.set()
    await asyncio.gather(*journal.tasks)
    assert journal.began == ["a", "b", "c"]


async def test_nobody_is_passed_by_who_could_join():
    journal = await held(up_to(8), stepping("a"), stepping("other", key=None), stepping("late"))

    assert journal.began == ["a"]
    journal.may_end.set()
    await asyncio.gather(*journal.tasks)
    assert journal.began == ["a", "other", "late"]


async def test_who_leaves_makes_room_for_the_next():
    runs, first = up_to(2), stepping("a")
    journal = await held(runs, first, stepping("b"), stepping("c"))

    runs.leave_device(first)
    await settle()

    assert journal.began == ["a", "b", "c"]
    journal.may_end.set()
    await asyncio.gather(*journal.tasks)


async def test_pictures_that_are_made_leave_room_as_well():
    runs, first = up_to(3), stepping("a", pictures=4)
    journal = await held(runs, first, stepping("b"))
    assert journal.began == ["a"]

    first.step = 20
    journal.tasks.append(asyncio.create_task(journal.run(stepping("c"))))
    await settle()

    assert journal.began == ["a", "b"]
    journal.may_end.set()
    await asyncio.gather(*journal.tasks)


async def test_nobody_joins_while_all_are_to_end():
    runs = up_to(8)
    journal = await held(runs, stepping("a"))

    async with asyncio.timeout(10):
        async with asyncio.TaskGroup() as group:
            group.create_task(nobody_at_work(runs))
            await settle()
            journal.tasks.append(asyncio.create_task(journal.run(stepping("late"))))
            await settle()
            assert journal.began == ["a"]
            journal.may_end.set()
        await asyncio.gather(*journal.tasks)

    assert journal.began == ["a", "late"]


async def nobody_at_work(runs: Scheduler) -> None:
    async with runs.between_runs():
        pass


async def test_who_is_to_be_made_again_alone_joins_nobody():
    runs, first = up_to(8), stepping("a")
    journal = await held(runs, first, stepping("b"))

    runs.again_alone(first)
    await settle()

    assert not first.turn.is_set()
    journal.may_end.set()
    await asyncio.gather(*journal.tasks)


def light(name: str, *, key: str | None = None) -> Job:
    return replace(stepping(name, key=key), light=True)


async def test_the_next_gets_its_turn_when_all_at_work_have_made_their_last_step():
    runs, first, second = up_to(1), light("a"), light("b")
    journal = await held(runs, first, second, light("c"))
    runs.stepped(first, 9)
    await settle()
    assert journal.began == ["a"]

    runs.stepped(first, 10)
    await settle()

    assert journal.began == ["a", "b"]
    assert (first.behind, second.behind) == (False, True)
    runs.leave_device(first)
    await settle()
    assert journal.began == ["a", "b"]
    journal.may_end.set()
    await asyncio.gather(*journal.tasks)
    assert journal.began == ["a", "b", "c"]


async def test_who_got_its_turn_early_is_joined_by_others_and_not_those_that_end():
    runs, first, jobs = up_to(2), light("first"), [light(name, key="k") for name in "abc"]
    journal = await held(runs, first, *jobs)

    runs.stepped(first, 10)
    await settle()

    assert journal.began == ["first", "a", "b"]
    assert jobs[0].share is jobs[1].share is not first.share
    journal.may_end.set()
    await asyncio.gather(*journal.tasks)


async def test_who_may_come_between_their_steps_joins_those_that_end_and_is_joined_as_if_they_were_gone():
    runs, jobs = up_to(2), [light(name, key="k") for name in "abc"]
    first = replace(light("first", key="k"), pictures=2)
    journal = await held(runs, first, *jobs)

    runs.stepped(first, 10)
    await settle()

    assert journal.began == ["first", "a", "b"]
    assert jobs[0].share is jobs[1].share is first.share
    runs.stepped(jobs[0], 10)
    await settle()
    assert journal.began == ["first", "a", "b", "c"]
    journal.may_end.set()
    await asyncio.gather(*journal.tasks)


async def test_those_that_are_to_be_exact_join_one_another_one_by_one():
    runs, jobs = up_to(8), [replace(light(name, key="k"), shared_key=None) for name in "abc"]
    journal = await held(runs, *jobs)
    runs.stepped(jobs[0], 9)
    await settle()
    assert journal.began == ["a"]

    runs.stepped(jobs[0], 10)
    await settle()
    assert journal.began == ["a", "b"]
    assert jobs[0].share is jobs[1].share is not None
    runs.stepped(jobs[1], 10)
    await settle()

    assert journal.began == ["a", "b", "c"]
    assert jobs[2].share is jobs[1].share
    journal.may_end.set()
    await asyncio.gather(*journal.tasks)


@pytest.mark.parametrize(
    ("at_work", "follower"),
    [({"light": False}, {}), ({}, {"light": False}), ({}, {"model": "other"})],
    ids=["one at work needs more than its model", "the next needs more than its model", "the next is on another model"],
)
async def test_nobody_is_sent_early_where_the_device_may_need_more_than_the_next_run(
    at_work: dict[str, Any], follower: dict[str, Any]
):
    runs, first = up_to(1), light("a")
    first, second = (replace(each, **how) for each, how in ((first, at_work), (light("b"), follower)))
    journal = await held(runs, first, second)

    runs.stepped(first, 10)
    await settle()

    assert journal.began == ["a"]
    journal.may_end.set()
    await asyncio.gather(*journal.tasks)


async def test_nobody_is_sent_early_while_all_are_to_end():
    runs, first = up_to(1), light("a")
    journal = await held(runs, first, light("b"))

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(nobody_at_work(runs))
        await settle()
        runs.stepped(first, 10)
        await settle()
        assert journal.began == ["a"]
        journal.may_end.set()
    await asyncio.gather(*journal.tasks)
    assert journal.began == ["a", "b"]
