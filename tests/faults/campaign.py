"""One fault: load, the blow, recovery, quiet, and the invariants; and the table of all of them."""

import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random

from tests.faults.checks import Findings, check, vitals
from tests.faults.estate import Estate
from tests.faults.load import RATE_PER_S, Load

COLUMNS = ("fault", "requests", "2xx", "refused", "failed", "recovered s", "slowest s", "invariants")


@dataclass(slots=True)
class Scene:
    """What a fault finds: the estate under load, and where it says what it did."""

    estate: Estate
    load: Load
    rng: Random
    longer: float
    """How many times longer than in the short form the fault lasts."""
    found: Findings = field(default_factory=Findings)
    struck_s: float = 0.0
    over_s: float = 0.0
    slow: float = 1.0
    """How many times longer everything takes than on a machine that has nothing else to do: bounds are so much wider."""

    def strikes(self) -> None:
        """The harm begins now, or not before now."""
        self.struck_s = self.over_s = time.monotonic()

    def over(self) -> None:
        """The cause is gone: from here on recovery is measured."""
        self.over_s = time.monotonic()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One row of the campaign."""

    code: str
    """As in F1."""
    title: str
    strike: Callable[[Scene], Awaitable[None]]
    """Does the harm and ends it, under load."""
    may_fail: bool = False
    """Whether requests may end otherwise than answered or refused: where the process dies that they are connected to."""
    may_refuse: bool = False
    """Whether requests may be refused with a time to come back: where nobody is left to take them."""
    recovers_within_s: float = 2.0
    good: int = 16
    """Good answers before the blow and after it."""
    kinds: tuple[str, ...] = ("sqlite", "postgres")
    """Estates on which the short form tries it."""
    possible: tuple[str, ...] = ("sqlite", "postgres")
    """Estates on which it can be tried at all."""


@dataclass(slots=True)
class Row:
    """What one fault came to."""

    fault: str
    requests: int
    good: int
    refused: int
    failed: int
    recovered_s: float
    """From the end of its cause (its beginning, where that stays) to the last request that was not answered well."""
    slowest_s: float
    words: str
    faults: list[str]
    """What is not as it must be."""

    def cells(self) -> tuple[str, ...]:
        """As the table shows it."""
        numbers = (self.requests, self.good, self.refused, self.failed)
        return (self.fault, *map(str, numbers), f"{self.recovered_s:.2f}", f"{self.slowest_s:.2f}", self.words)


async def wage(fault: Fault, estate: Estate, *, seed: int, longer: float = 1.0, rate_per_s: float = RATE_PER_S) -> Row:
    """Try one fault on an estate, which is well before and after."""
    rng = Random(f"{fault.code} {seed}")
    await estate.heal()
    await estate.forgive()
    name = f"{fault.code} {estate.title} {seed} {rng.randrange(10**6)}"
    scene = Scene(estate, Load(estate, name, rng, rate_per_s=rate_per_s), rng, longer)
    before = {router.pid: vitals(router.pid) for router in estate.routers}
    good = round(fault.good * longer)
    scene.load.begin()
    try:
        await scene.load.good(good)
        scene.slow = scene.load.slowness()
        scene.strikes()
        await fault.strike(scene)
        await scene.load.good(good)
        await scene.load.stop()
    except AssertionError as error:
        scene.found.hold("I7", str(error))
        await scene.load.abandon()
    await estate.heal()
    found = await check(estate, scene.load, before, slow=scene.slow)
    await scene.load.aclose()
    for each in scene.found.checked:
        found.hold(each, *scene.found.breaches.get(each, []))
    return _row(fault, scene, found, f"{fault.code} {fault.title}, {estate.title}")


def _row(fault: Fault, scene: Scene, found: Findings, title: str) -> Row:
    asked = scene.load.asked
    counts = Counter(each.outcome for each in asked)
    unwell = [each for each in asked if each.outcome in ("refused", "failed")]
    late = max((each.ended_s or 0.0 for each in unwell), default=0.0)
    recovered_s = max(0.0, late - scene.over_s)
    answered = [each.ended_s - each.sent_s for each in asked if each.outcome == "2xx" and each.ended_s is not None]
    wrong = [breach for name in found.breaches for breach in (f"{name}: {each}" for each in found.breaches[name])]
    allowed = {"failed": fault.may_fail, "refused": fault.may_refuse}
    ends = Counter((each.outcome, each.status, each.error, each.told) for each in unwell if not allowed[each.outcome])
    wrong += [f"{outcome}: {count} times {status} {error} {told}" for (outcome, status, error, told), count in ends.items()]
    allowed_s = fault.recovers_within_s * scene.slow
    if recovered_s > allowed_s:
        wrong.append(f"it took {recovered_s:.2f} s to recover, where {allowed_s:.2f} s are allowed")
    return Row(
        title,
        len(asked),
        counts["2xx"],
        counts["refused"],
        counts["failed"],
        recovered_s,
        max(answered, default=0.0),
        found.words(),
        wrong,
    )


def table(rows: list[Row]) -> str:
    """All of them, aligned."""
    cells = [COLUMNS, *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(COLUMNS))]
    return "\n".join(" | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells)
