"""What a picture costs by the size of its pass: measured, kept in a file, and asked how many to make together.

Whether a batch pays depends on the device, the model and the shape of the work: a large GPU is idle most of the time with
one picture of SD 1.5, and busy with one of FLUX. So nothing is assumed. A pass of one is measured first, then one of two,
then four, as soon as so many pictures wait; the next size is tried only while the last one was worth it.
"""

import asyncio
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, RootModel, ValidationError

from common.logs import get_logger
from node.engines.base import PassTime, RunSpec

log = get_logger(__name__)

SIZES = (1, 2, 4, 8)
"""Pictures in a pass. Few sizes are few to measure, and few to compile for."""
PAYS = 1.1
"""A batch must make this many times the pictures of single passes in the same time: less is not worth its rounding."""
GAINS = 1.03
"""A larger batch must be this much better than a smaller one, for its first picture comes later."""
EWMA_WEIGHT = 0.3
AGAIN_AFTER = 50
"""A size that was not worth it is measured again after so many passes that could have had it: it may have been bad luck."""
MAX_ROWS = 512
"""Shapes remembered; clients choose sizes and steps freely."""
WRITE_EVERY_S = 2.0


class Wanted(NamedTuple):
    """Pictures that want to be made."""

    shape: str
    steps: int
    """Of each."""
    pictures: int


def shape_of(spec: RunSpec) -> str:
    """What a measurement is good for, in words: model, size, steps, and whether each step is computed twice."""
    guided = "guided" if max(spec.guidance, spec.true_cfg_scale or 0.0) > 1 else "unguided"
    return f"{spec.model} {spec.drawn} {spec.steps} steps {guided}"


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid")

    seconds: dict[int, float] = {}
    """Size of the pass -> seconds a picture, an exponentially weighted mean."""
    fits: int = SIZES[-1]
    """The largest size that the memory allows, as far as is known."""


_Rows = RootModel[dict[str, _Row]]


@dataclass(slots=True)
class BatchTable:
    """The measurements of one node. path: None keeps them nowhere. device: as it names itself; None while not known."""

    path: Path | None
    device: Callable[[], str | None]
    _rows: OrderedDict[str, _Row] = field(default_factory=OrderedDict, init=False)
    _warm: set[tuple[str, int]] = field(default_factory=set, init=False)
    """Sizes run once since the start: the first time of each is not like the others."""
    _passed_over: dict[str, int] = field(default_factory=dict, init=False)
    _changed: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    def __post_init__(self) -> None:
        if self.path is None or not self.path.exists():
            return
        try:
            self._rows.update(_Rows.model_validate_json(self.path.read_bytes()).root)
        except (OSError, ValidationError) as error:
            # Measurements are made again; a node that does not start is worse.
            log.warning("batch_table_not_read", path=str(self.path), reason=type(error).__name__)

    def size(self, shape: str, pictures: int) -> int:
        """How many of so many waiting pictures to make in one pass."""
        row = self._row(shape)
        if row is None or 1 not in row.seconds:
            return 1
        sizes = [size for size in SIZES[1:] if size <= min(pictures, row.fits)]
        for size in sizes:
            if size not in row.seconds:
                return size
            if row.seconds[size // 2] < GAINS * row.seconds[size]:
                if self._time_to_try_again(shape):
                    return size
                break
        return _best(row, sizes)

    def joins(self, more: Wanted, at_work: Sequence[Wanted]) -> int | None:
        """How many in a pass to allow when a run is to come between the steps of others; None: it had better wait.

        Of one shape it may be tried out. Where shapes differ every picture costs at most what the dearest of them costs in so
        large a step, which all of them together must be worth: nothing is tried, for of such a step nothing is learned.
        """
        everyone = (more, *at_work)
        pictures = sum(each.pictures for each in everyone)
        size = next((size for size in SIZES if size >= pictures), None)
        if size is None:
            return None
        if len({each.shape for each in everyone}) == 1:
            return pictures if self.size(more.shape, size) >= pictures else None
        alone_s = [self._step_s(each, 1) for each in everyone]
        dearest = max(everyone, key=lambda each: self._step_s(each, 1) or 0.0)
        shared_s = self._step_s(dearest, size)
        if shared_s is None or None in alone_s:
            return None
        apart_s = sum(each.pictures * (step_s or 0.0) for each, step_s in zip(everyone, alone_s, strict=True))
        return pictures if apart_s > PAYS * pictures * shared_s else None

    def _step_s(self, wanted: Wanted, size: int) -> float | None:
        """Seconds a picture for one step of so many, its part of the decoding included; None if not measured."""
        row = self._row(wanted.shape)
        seconds = None if row is None or size > row.fits else row.seconds.get(size)
        return None if seconds is None else seconds / wanted.steps

    def wanted(self, model: str) -> int:
        """How many pictures of a model the node would rather have at hand: the largest size that pays or is to be tried."""
        rows = [row for name, row in self._rows.items() if name.startswith(f"{self.device()}: {model} ")]
        return max((_wanted(row) for row in rows), default=SIZES[1])

    def learn(self, shape: str, measured: PassTime) -> None:
        """Take in one pass."""
        row = self._row(shape)
        if row is None:
            return
        size = measured.pictures
        if measured.seconds is None:
            row.fits = min(row.fits, max(each for each in SIZES if each < size))
        elif size not in SIZES:
            # Between steps there are any number of pictures at work; what is asked for is in powers of two.
            return
        elif (shape, size) not in self._warm:
            self._warm.add((shape, size))
            return
        else:
            seconds, before = measured.seconds / size, row.seconds.get(size)
            row.seconds[size] = seconds if before is None else before + EWMA_WEIGHT * (seconds - before)
        self._changed.set()

    def told(self) -> dict[str, dict[int, float]]:
        """Every measurement: shape, on which device -> size of the pass -> seconds a picture."""
        return {name: dict(sorted(row.seconds.items())) for name, row in self._rows.items() if row.seconds}

    async def keep(self) -> None:
        """Write what changes into the file, for ever and once more at the end."""
        try:
            while True:
                await self._changed.wait()
                self._changed.clear()
                await asyncio.to_thread(self.write)
                await asyncio.sleep(WRITE_EVERY_S)
        finally:
            self.write()

    def write(self) -> None:
        """Replace the file, whole or not at all."""
        if self.path is None or not self._rows:
            return
        text = json.dumps({name: row.model_dump() for name, row in list(self._rows.items())}, indent=1)
        unfinished = self.path.with_suffix(".tmp")
        try:
            unfinished.write_text(text)
            unfinished.replace(self.path)
        except OSError as error:
            log.warning("batch_table_not_written", path=str(self.path), reason=str(error))

    def _row(self, shape: str) -> _Row | None:
        """None while the device is not known: another's measurements say nothing."""
        device = self.device()
        if device is None:
            return None
        name = f"{device}: {shape}"
        row = self._rows.setdefault(name, _Row())
        self._rows.move_to_end(name)
        while len(self._rows) > MAX_ROWS:
            self._rows.popitem(last=False)
        return row

    def _time_to_try_again(self, shape: str) -> bool:
        passed_over = self._passed_over.get(shape, 0) + 1
        self._passed_over[shape] = passed_over % AGAIN_AFTER
        return passed_over == AGAIN_AFTER


def _best(row: _Row, sizes: list[int]) -> int:
    """The smallest size about as good as the best of these that are measured; 1 where that does not pay."""
    known = {size: row.seconds[size] for size in (1, *sizes) if size in row.seconds}
    best = next(size for size, seconds in known.items() if seconds <= GAINS * min(known.values()))
    return best if known[1] > PAYS * known[best] else 1


def _wanted(row: _Row) -> int:
    for size in SIZES[1:]:
        if size > row.fits:
            break
        if size not in row.seconds:
            return size
        if row.seconds.get(size // 2, 0.0) < GAINS * row.seconds[size]:
            break
    return _best(row, list(SIZES[1:])) if 1 in row.seconds else 1
