"""The invariants, held against everything after a fault: answers, the catalog's rows, the nodes' journal, files on disk.

I1   each picture of a 2xx is on disk under its hash, has a row, and is what its request makes
I2   one run for each request that was accepted, with its pictures and its seeds
I3   no run is left open
I4   one sweep leaves no bytes without a row, and no row without its bytes
I5   an idempotency key gives the same answer again, of one generation; with another request it is refused
I6   a second attempt began only when the one before was closed; one attempt at most stored pictures
I7   every request ended, and whoever asked with a key knows how
I8   who left is worked for no longer
I9   who was told to stop stopped in good order
I10  no answer has another request's bytes
I11  what was billed is what was done
I12  descriptors and memory of routers that lived through it are back
I13  a backup is what the catalog and the store have, and says in what they differ (backups.py)
I14  what is written down as the time of an event is when it was, whatever the clocks of processes say
"""

import hashlib
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.catalog import AttemptStatus, RunRecord, RunStatus
from common.catalog.assets import key_of
from common.catalog.records import OPEN_RUN
from common.catalog.sweeper import sweep
from tests.faults.backups import differences
from tests.faults.estate import WORK_S, Estate, monotonic, until
from tests.faults.load import Asked, Load

QUIET_WITHIN_S = 60.0
REPLAYS = 4
"""Keys that are asked for again."""
STOPS_WITHIN_S = 1.0
"""How soon a node is to leave the work of a client that left, on a machine that is busy."""
WRONG_BY_S = 1.0
"""What a time that is written down may differ from when it was."""
MORE_DESCRIPTORS = 40
"""Connections that are kept open on purpose: to nodes and to the database."""
CLOSED_WITHIN_S = 10.0
"""How soon a router notices that its clients have closed theirs."""
MORE_MEMORY_BYTES = 64 * 1024 * 1024


@dataclass(slots=True)
class Findings:
    """Breaches by invariant; an invariant with none held."""

    breaches: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    checked: set[str] = field(default_factory=set)

    def hold(self, name: str, *breaches: str) -> None:
        """Note that an invariant was looked at, and what breaks it."""
        self.checked.add(name)
        if breaches:
            self.breaches[name] += breaches

    def words(self) -> str:
        """For the table: which held, and which did not."""
        order = sorted(self.checked, key=lambda name: int(name[1:]))
        broken = [f"{name} BROKEN ({len(self.breaches[name])})" for name in order if self.breaches.get(name)]
        return " ".join(broken) or f"{len(order)} hold"


def vitals(pid: int) -> tuple[int, int]:
    """(open descriptors, resident bytes) of a process; (0, 0) when it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return len(list(Path(f"/proc/{pid}/fd").iterdir())), pages * 4096
    except OSError:
        return 0, 0


async def check(estate: Estate, load: Load, before: dict[int, tuple[int, int]], *, slow: float) -> Findings:
    """All of them. before: `vitals` of the routers by process id. slow: how many times wider bounds of time are."""
    found = Findings()
    runs = await _quiet(estate, load, found)
    by_prompt: dict[str, list[RunRecord]] = defaultdict(list)
    for run in runs:
        by_prompt[run.prompt].append(run)
    good = [each for each in load.asked if each.outcome == "2xx"]
    for asked in good:
        _pictures(asked, by_prompt[asked.prompt], estate.home / "assets", found)
        _times(asked, by_prompt[asked.prompt], found)
    for asked in load.asked:
        _one_run(asked, by_prompt[asked.prompt], found)
        found.hold("I7", *([f"{asked.prompt}: {asked.status} {asked.error}"] if _unresolved(asked) else []))
    events = defaultdict(list)
    for event in estate.events_of(runs):
        events[event["run_id"]].append(event)
    for run in runs:
        _attempts(run, events[run.id], found)
    for asked in load.asked:
        _left(asked, by_prompt[asked.prompt], events, slow, found)
    await _keys(load, good, by_prompt, found)
    await _files(estate, runs, found)
    await _bills(estate, found)
    if good:
        found.hold("I13", *await differences(estate, good[0].digests[0]))
    await load.aclose()
    await _processes(estate, before, found)
    return found


async def all_runs(estate: Estate, prefix: str) -> list[RunRecord]:
    """Every run whose prompt begins so, newest first."""
    runs: list[RunRecord] = []
    after: str | None = None
    while page := await estate.catalog.runs.list(limit=200, after=after):
        ours = [run for run in page if run.prompt.startswith(prefix)]
        runs += ours
        after = page[-1].id
        if not ours and runs:
            break
    return runs


async def _quiet(estate: Estate, load: Load, found: Findings) -> list[RunRecord]:
    """I3: wait until no run is open, and give all of this load's."""
    runs: list[RunRecord] = []

    async def ended() -> bool:
        runs[:] = await all_runs(estate, f"{load.name} ")
        return all(run.status not in OPEN_RUN for run in runs)

    try:
        await until(ended, what="every run to end", within_s=QUIET_WITHIN_S)
    except AssertionError:
        found.hold("I3", *(f"{run.prompt}: {run.status}" for run in runs if run.status in OPEN_RUN))
    found.hold("I3")
    return runs


def _pictures(asked: Asked, runs: list[RunRecord], assets: Path, found: Findings) -> None:
    """I1, I10."""
    found.hold("I10", *([f"{asked.prompt}: not its own pictures"] if asked.crossed else []))
    run = next((run for run in runs if run.id == asked.run_id), None)
    if run is None or run.status is not RunStatus.SUCCEEDED:
        found.hold("I1", f"{asked.prompt}: answered, and its run is {run.status if run else 'nowhere'}")
        return
    rows = [image.sha256 for image in run.images]
    found.hold("I1", *([f"{asked.prompt}: rows are not what was answered"] if rows != asked.digests else []))
    for sha256 in rows:
        file = assets / key_of(sha256)
        whole = file.exists() and hashlib.sha256(file.read_bytes()).hexdigest() == sha256
        found.hold("I1", *([] if whole else [f"{asked.prompt}: the bytes of {sha256} are not on disk"]))


def _times(asked: Asked, runs: list[RunRecord], found: Findings) -> None:
    """I14. Under a key the run may be that of an earlier request, or of another's at the same moment."""
    run = next((run for run in runs if run.id == asked.run_id), None)
    if run is None or asked.ended_s is None:
        return
    ended = [attempt.finished_at for attempt in run.attempts] + [run.finished_at]
    begun = [attempt.created_at for attempt in run.attempts] + [run.created_at]
    told = [monotonic(each) for each in (*begun, *ended) if each is not None]
    first_s, last_s = asked.sent_s - WRONG_BY_S, asked.ended_s + WRONG_BY_S
    wrong = [each for each in told if not first_s <= each <= last_s]
    found.hold("I14", *[f"{asked.prompt}: {each - asked.sent_s:.1f} s after it was asked, says the catalog" for each in wrong])


def _one_run(asked: Asked, runs: list[RunRecord], found: Findings) -> None:
    """I2. One under a key may have been begun anew after one that came to nothing."""
    made = [run for run in runs if run.status is RunStatus.SUCCEEDED]
    count = len(made) if asked.key is not None else len(runs)
    found.hold("I2", *([f"{asked.prompt}: {len(runs)} runs, {len(made)} of them done"] if count > 1 else []))
    for run in made:
        seeds = [image.seed for image in run.images]
        as_asked = seeds == list(range(asked.seed, asked.seed + asked.n)) and run.n == asked.n
        found.hold("I2", *([] if as_asked else [f"{asked.prompt}: seeds {seeds}"]))


def _unresolved(asked: Asked) -> bool:
    return asked.ended_s is None or (asked.key is not None and asked.status is None and asked.left_s is None)


def _attempts(run: RunRecord, events: list[dict[str, Any]], found: Findings) -> None:
    """I6."""
    stored = {event["attempt"] for event in events if event["event"] == "stored"}
    succeeded = [attempt.no for attempt in run.attempts if attempt.status is AttemptStatus.SUCCEEDED]
    # A node that was killed between its commit and its journal has stored, too.
    once = len(stored) <= 1 and stored <= set(succeeded)
    found.hold("I6", *([] if once else [f"{run.prompt}: attempts {sorted(stored)} stored, {succeeded} succeeded"]))
    for one, next_one in zip(run.attempts, run.attempts[1:], strict=False):
        closed = one.finished_at is not None and one.finished_at <= next_one.created_at
        found.hold("I6", *([] if closed else [f"{run.prompt}: attempt {next_one.no} beside {one.no}"]))


def _left(asked: Asked, runs: list[RunRecord], events: dict[str, list[dict[str, Any]]], slow: float, found: Findings) -> None:
    """I8."""
    if asked.left_s is None:
        return
    for event in (event for run in runs for event in events[run.id]):
        late_s = event["at_s"] - asked.left_s
        if event["event"] == "begun" and late_s > slow * STOPS_WITHIN_S:
            found.hold("I8", f"{asked.prompt}: begun {late_s:.2f} s after its client left")
        if event["event"] == "stored" and late_s > slow * (WORK_S + STOPS_WITHIN_S):
            found.hold("I8", f"{asked.prompt}: worked on for {late_s:.2f} s after its client left")
    found.hold("I8")


async def _keys(load: Load, good: list[Asked], by_prompt: dict[str, list[RunRecord]], found: Findings) -> None:
    """I5: some keys once more, at the other router; and with another request."""
    with_key = [asked for asked in good if asked.key is not None and asked.kind in ("json", "url")]
    for asked in with_key[:REPLAYS]:
        first = asked.digests
        again = await load.once_more(asked)
        same = (again.status, again.digests, again.run_id) == (200, first, asked.run_id)
        found.hold("I5", *([] if same else [f"{asked.prompt}: {again.status} {again.error} on asking again"]))
        other = await load.once_more(asked, seed=asked.seed + 1)
        found.hold("I5", *([] if other.status == 422 else [f"{asked.prompt}: {other.status} for another request"]))
        made = [run for run in by_prompt[asked.prompt] if run.status is RunStatus.SUCCEEDED]
        found.hold("I5", *([] if len(made) == 1 else [f"{asked.prompt}: {len(made)} generations"]))


async def _files(estate: Estate, runs: list[RunRecord], found: Findings) -> None:
    """I4."""
    began_s = time.time()
    await sweep(estate.catalog, estate.assets, run_timeout_s=3600, grace_s=0)
    every = [file async for file in estate.assets.iterate()]
    files = [file for file in every if file.modified_at.timestamp() < began_s]
    there = {file.sha256 for file in every}
    found.hold(
        "I4", *(f"{run.prompt}: a row without its bytes" for run in runs for image in run.images if image.sha256 not in there)
    )
    known = await estate.catalog.runs.stored([file.sha256 for file in files])
    found.hold("I4", *(f"{file.sha256}: bytes without a row" for file in files if file.sha256 not in known))


async def _bills(estate: Estate, found: Findings) -> None:
    """I11."""
    billed = await estate.catalog.quotas.usage(since="2000-01-01")
    runs, images = sum(each.runs for each in billed), sum(each.images for each in billed)
    done = [run for run in await all_runs(estate, "") if run.status is RunStatus.SUCCEEDED]
    made = sum(len(run.images) for run in done)
    same = (runs, images) == (len(done), made)
    found.hold("I11", *([] if same else [f"billed {runs} runs and {images} pictures, done {len(done)} and {made}"]))


async def _processes(estate: Estate, before: dict[int, tuple[int, int]], found: Findings) -> None:
    """I12, with no client connected any more."""

    def as_before() -> bool:
        known = [(vitals(router.pid)[0], before[router.pid][0]) for router in estate.routers if router.pid in before]
        return all(now <= then + MORE_DESCRIPTORS for now, then in known)

    with suppress(AssertionError):
        await until(as_before, what="connections to be closed", within_s=CLOSED_WITHIN_S)
    for router in estate.routers:
        descriptors, memory = before.get(router.pid, (0, 0))
        now_descriptors, now_memory = vitals(router.pid)
        if descriptors and now_descriptors > descriptors + MORE_DESCRIPTORS:
            found.hold("I12", f"{now_descriptors} descriptors, {descriptors} before")
        if memory and now_memory > memory + MORE_MEMORY_BYTES:
            found.hold("I12", f"{now_memory:,} bytes, {memory:,} before")
        if descriptors and now_descriptors:
            found.hold("I12")
