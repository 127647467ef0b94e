"""Who is next: a bounded first-come queue in front of the one worker, and what was learned about how long runs take."""

import asyncio
import math
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

from common.errors import Conflict, RunCancelled, TooManyRequests, Unavailable
from common.node_api import JobPhase, JobStatus, LoadTook, RunTook
from node.batch_table import Wanted
from node.sharing import Share, companions

EWMA_WEIGHT = 0.3
"""Share of the newest measurement: three runs are enough to forget a first, cold one."""
GUESSED_SECONDS_PER_UNIT = 1.0
"""Seconds for a megapixel-step before anything was measured: between a CPU (tens) and a data-centre GPU (0.05)."""
GUESSED_LOAD_S = 20.0
TOLD = 16
"""Latest runs and loads whose times routers are told."""


@dataclass(slots=True, eq=False)
class Job:
    """One run this node holds, from its entry into the queue to its end."""

    run_id: str
    model: str
    work_units: float
    """Megapixel-steps of the whole run."""
    steps: int
    pictures: int = 1
    shared_key: Hashable | None = None
    """Runs with the same key may share a pass; None: with nobody."""
    shape: str = ""
    """What its pass is measured under."""
    work: str = ""
    """Its kind, as `work_words` says it."""
    pixels: int = 0
    """Area of one picture."""
    steps_key: Hashable | None = None
    """Runs with the same key may come between the steps of one another, and, where `shared_key` is None, behind the last of
    them; None: with nobody."""
    light: bool = False
    """Whether all it needs of the device is its model: it may then be sent while a light one on the same model ends."""
    phase: JobPhase = JobPhase.QUEUED
    step: int = 0
    cancel_ordered: bool = False
    loading_since_s: float | None = None
    """On the clock of `time.perf_counter`; None while it does not load."""
    off_device: bool = False
    """True once its pictures are made and only recording is left."""
    task: asyncio.Task[object] | None = None
    turn: asyncio.Event = field(default_factory=asyncio.Event)
    share: Share | None = None
    """Those it goes to the worker with; set with its turn."""
    behind: bool = False
    """Whether it got its turn while others were ending, and the device has not turned to it yet."""

    @property
    def ending(self) -> bool:
        """Whether all its steps are made, and only decoding and encoding are left."""
        return self.step >= self.steps

    def status(self) -> JobStatus:
        """As the router reads it."""
        return JobStatus(
            run_id=self.run_id,
            model=self.model,
            phase=self.phase,
            step=self.step,
            steps=self.steps,
            work_units=self.work_units,
            work=self.work,
            pixels=self.pixels,
            pictures=self.pictures,
            loading_s=0.0 if self.loading_since_s is None else time.perf_counter() - self.loading_since_s,
        )

    def wanted(self) -> Wanted:
        """What of it is still to be made."""
        made = self.step / self.steps if self.steps else 0.0
        return Wanted(self.shape, self.steps // self.pictures, max(1, math.ceil(self.pictures * (1 - made))))


class Pace:
    """Measured seconds, by model: for one megapixel-step, and for a load. Exponentially weighted means."""

    def __init__(self) -> None:
        self.seconds_per_unit: dict[str, float] = {}
        self.load_s: dict[str, float] = {}
        self.runs_took: deque[RunTook] = deque(maxlen=TOLD)
        self.loads_took: deque[LoadTook] = deque(maxlen=TOLD)
        self._loads = count(1)
        self._began = secrets.token_hex(4)

    def learn_run(self, model: str, seconds: float, work_units: float) -> None:
        """Take in one finished run."""
        if work_units > 0:
            self.seconds_per_unit[model] = _mean(self.seconds_per_unit.get(model), seconds / work_units)

    def learn_load(self, model: str, seconds: float) -> None:
        """Take in one finished load."""
        self.load_s[model] = _mean(self.load_s.get(model), seconds)
        self.loads_took.append(LoadTook(id=f"{self._began}-{next(self._loads)}", model=model, load_s=seconds))

    def run_s(self, model: str, work_units: float) -> float:
        """Predicted seconds of a run on a loaded model."""
        known = self.seconds_per_unit.get(model)
        if known is None and self.seconds_per_unit:
            known = max(self.seconds_per_unit.values())
        return work_units * (known if known is not None else GUESSED_SECONDS_PER_UNIT)


def _mean(before: float | None, measured: float) -> float:
    return measured if before is None else before + EWMA_WEIGHT * (measured - before)


def _last_share(at_work: Iterable[Job]) -> Share:
    return max((job.share for job in at_work if job.share is not None), key=lambda share: share.number)


class Scheduler:
    """First come, first served; one at a time, because the device does one thing at a time.

    Where it pays, runs that wait and may share a pass come to the device with the first of them. Nobody in between waits
    longer for it than for one pass, and what a pass costs less than its pictures one by one is everybody's gain.

    Where runs can come and go between steps, the next in the queue joins those at work when that pays, and the next after it;
    the first that cannot, or had better not, ends that: nobody is passed by those who come later, however many they are.

    Once all at work have made their last step the next may get its turn: its order lies ready in the worker when the device
    is free, which it may be while they are decoded. Not sooner, for until then it may still be cancelled, joined, or put off
    without the worker hearing of it.
    """

    def __init__(
        self,
        *,
        max_queued: int,
        pace: Pace,
        is_resident: Callable[[str], bool],
        batch_size: Callable[[str, int], int] = lambda shape, pictures: 1,
        joins: Callable[[Wanted, Sequence[Wanted]], int | None] = lambda more, at_work: None,
    ) -> None:
        """max_queued: runs that may wait beside those that run.

        batch_size: how many of so many waiting pictures of a shape to make in one pass. joins: how many to allow in a pass
        that one more joins; None has it wait.
        """
        self._max_queued = max_queued
        self._batch_size = batch_size
        self._joins = joins
        self._pace = pace
        self._is_resident = is_resident
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._held_up = False
        self._none_at_work = asyncio.Event()
        self.draining = False
        """True while no new run is taken."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when a run has come, left, begun, or got on."""

    @property
    def jobs(self) -> tuple[Job, ...]:
        """Every run held, in the order of their turns."""
        return tuple(self._jobs.values())

    @asynccontextmanager
    async def place(self, job: Job) -> AsyncIterator[None]:
        """Take a place in the queue for the length of the block, cancelled or not.

        Raises: TooManyRequests: the queue is full; Unavailable: draining; Conflict: this run is already here;
        RunCancelled: an operator ended the run by `cancel`.
        """
        self._admit(job)
        job.task = asyncio.current_task()
        self._jobs[job.run_id] = job
        self._give_turn()
        try:
            yield
        except asyncio.CancelledError:
            if job.cancel_ordered:
                raise RunCancelled("The run was cancelled.") from None
            raise
        finally:
            del self._jobs[job.run_id]
            if job.share is not None:
                job.share.leave(job.run_id)
            self._give_turn()

    @asynccontextmanager
    async def between_runs(self) -> AsyncIterator[None]:
        """No run is at work for the length of the block: those that are end first, and those that wait go on waiting."""
        self._held_up = True
        try:
            self._give_turn()
            await self._none_at_work.wait()
            yield
        finally:
            self._held_up = False
            self._give_turn()

    def stepped(self, job: Job, step: int) -> None:
        """Take in how many steps of a run are made."""
        job.step = step
        if job.ending:
            self._give_turn()
        else:
            self.on_change()

    def leave_device(self, job: Job) -> None:
        """Let the next begin while this one is being recorded."""
        job.off_device = True
        if job.share is not None:
            job.share.leave(job.run_id)
        self._give_turn()

    def again_alone(self, job: Job) -> None:
        """Give up a turn, and take another by oneself: what was shared has failed."""
        job.turn.clear()
        job.share, job.shared_key, job.steps_key = None, None, None
        job.phase, job.step, job.loading_since_s, job.behind = JobPhase.QUEUED, 0, None, False
        self._give_turn()

    def cancel(self, run_id: str) -> bool:
        """End a run: at once while it waits, at its next step while it runs.

        Returns: False when it is not here, or its pictures are made already.
        """
        job = self._jobs.get(run_id)
        if job is None or job.task is None or job.off_device:
            return False
        job.cancel_ordered = True
        job.task.cancel()
        return True

    def wait_s(self) -> float:
        """Predicted seconds until everything held now has ended."""
        total_s, loaded = 0.0, set[str]()
        for job in self._jobs.values():
            if job.off_device:
                continue
            left = 1 - job.step / job.steps if job.steps else 1.0
            total_s += self._pace.run_s(job.model, job.work_units) * left
            if job.model not in loaded and not self._is_resident(job.model):
                total_s += self._pace.load_s.get(job.model, GUESSED_LOAD_S)
            loaded.add(job.model)
        return total_s

    def _admit(self, job: Job) -> None:
        if self.draining:
            raise Unavailable("This node is draining and takes no new runs.", code="draining", retry_after_s=10)
        if job.run_id in self._jobs:
            raise Conflict(f"The run {job.run_id} is already on this node.", code="run_in_flight")
        held = [job for job in self._jobs.values() if not job.off_device]
        if held and sum(not job.turn.is_set() for job in held) >= self._max_queued:
            retry_s = self.wait_s() / len(held)
            raise TooManyRequests(
                f"This node's queue is full: {self._max_queued} runs are waiting. "
                f"A place is expected to be free in about {max(1, round(retry_s))} s.",
                retry_after_s=retry_s,
            )

    def _give_turn(self) -> None:
        self.on_change()
        held = [job for job in self._jobs.values() if not job.off_device]
        at_work = [job for job in held if job.turn.is_set()]
        if not at_work:
            self._none_at_work.set()
        waiting = [job for job in held if not job.turn.is_set()]
        if not held or self._held_up:
            return
        self._none_at_work.clear()
        if not at_work:
            at_work = self._begin_share(waiting)
        elif waiting and self._may_follow(waiting[0], at_work):
            at_work = self._begin_share(waiting, at_work)
            for job in at_work:
                job.behind = True
        last = _last_share(at_work)
        stepping = [job for job in at_work if job.share is last and not job.ending]
        self._let_join(stepping, [job for job in waiting if not job.turn.is_set()])

    def _may_follow(self, job: Job, at_work: Sequence[Job]) -> bool:
        """Whether the next may be sent already. On another model it is not: what a worker dies of is held against the model."""
        alike = all(each.light and each.model == job.model for each in (job, *at_work))
        return alike and all(each.ending for each in at_work) and self._is_resident(job.model)

    def _begin_share(self, waiting: Sequence[Job], before: Sequence[Job] = ()) -> list[Job]:
        """Give the first its turn, and with it those that share its pass.

        before: those at work, all of them ending. Where it can it joins the last of them, to make its first step while
        they are decoded; else it begins when they are out.
        """
        first = waiting[0]
        alike = [
            job for job in waiting if job is first or (first.shared_key is not None and job.shared_key == first.shared_key)
        ]
        pictures = {job.run_id: job.pictures for job in alike}
        batch = 1 if first.shared_key is None else self._batch_size(first.shape, sum(pictures.values()))
        chosen = companions(pictures.items(), batch)
        last = _last_share(before) if before else None
        keys = {job.steps_key for job in before if job.share is last}
        share = last if last is not None and first.steps_key is not None and keys == {first.steps_key} else Share({}, batch)
        for run_id in chosen:
            share.join(run_id, pictures[run_id], batch)
            job = self._jobs[run_id]
            job.share = share
            job.turn.set()
        return [self._jobs[run_id] for run_id in chosen]

    def _let_join(self, at_work: list[Job], waiting: Sequence[Job]) -> None:
        """Have those that wait come between the steps of those at work, the first of them first."""
        if not at_work:
            return
        share, key = at_work[0].share, at_work[0].steps_key
        for job in waiting:
            if key is None or share is None or job.steps_key != key or job.shared_key is None:
                return
            batch = self._joins(job.wanted(), [each.wanted() for each in at_work])
            if batch is None:
                return
            share.join(job.run_id, job.pictures, batch)
            job.share = share
            job.turn.set()
            at_work.append(job)
