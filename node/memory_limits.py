"""Which pictures the device's memory did not suffice for, so that they are not tried again and again.

Kept in the node's home over restarts. A limit holds for one model, run one way on one device, and for one task, for an
edit needs more than a picture from noise. What was beside the model counts too: a limit found with a ControlNet holds
for runs with that ControlNet and more, not for those without. After a day a limit is tried again: what took the memory may
have been something else.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from common.logs import get_logger
from common.node_api import MemoryLimit
from node.offload import Offload

log = get_logger(__name__)

TRUSTED_S = 24 * 3600.0
"""How long a limit is held to."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to run one model: what a limit holds for."""

    model: str
    how: str
    """Device, engine, file and number format."""
    beside: tuple[str, ...] = ()
    """What is on the device with it, sorted."""

    def within(self, other: "Way") -> bool:
        """Whether it is the same with no more beside the model."""
        return (self.model, self.how) == (other.model, other.how) and set(self.beside) <= set(other.beside)


@dataclass(slots=True)
class _Seen:
    """What came of the pictures of one way and task."""

    way: Way
    task: str
    fits_px: int = 0
    """Area of the largest that was made; 0 when none was."""
    too_large_px: int | None = None
    """Area of the smallest that memory ran out for."""
    at_s: float = 0.0
    """Unix seconds of that, or of what needed offloading."""
    needs: dict[Offload, int] = field(default_factory=dict)
    """Area of the smallest picture that was made only by keeping so much of the weights off the device."""


class MemoryLimits:
    """All of a node's."""

    def __init__(self, path: Path | None = None, *, clock: Callable[[], float] = time.time) -> None:
        """path: the file they are kept in; None keeps them for as long as this object lives."""
        self._path = path
        self._clock = clock
        self._seen = {(each.way, each.task): each for each in _read(path)}

    def of(self, way: Way) -> dict[str, MemoryLimit]:
        """What is known of a way, by task."""
        limits = dict[str, MemoryLimit]()
        for each in self._seen.values():
            limit = self._limit(each) if each.way.within(way) else None
            if limit is not None and (each.task not in limits or limit.too_large_px < limits[each.task].too_large_px):
                limits[each.task] = limit
        return limits

    def failed(self, way: Way, task: str, pixels: int) -> MemoryLimit:
        """Memory ran out for a picture of this area, with nothing left to try."""
        seen = self._of(way, task)
        known = self._limit(seen)
        seen.too_large_px = pixels if known is None else min(pixels, known.too_large_px)
        seen.fits_px = seen.fits_px if seen.fits_px < seen.too_large_px else 0
        seen.at_s = self._clock()
        self._write()
        limit = self._limit(seen)
        assert limit is not None
        return limit

    def offload(self, way: Way, task: str, pixels: int) -> Offload:
        """What a picture of this area needed before."""
        held = [each for each in self._seen.values() if each.task == task and each.way.within(way) and self._trusted(each)]
        needed = [mode for each in held for mode, least_px in each.needs.items() if pixels >= least_px]
        return max(needed, key=list(Offload).index, default=Offload.NONE)

    def made(self, way: Way, task: str, pixels: int, offload: Offload) -> None:
        """A picture of this area was made, with so much of the weights off the device."""
        seen = self._of(way, task)
        if self.offload(way, task, pixels) is not offload:
            seen.needs = {mode: least_px for mode, least_px in seen.needs.items() if self._trusted(seen)}
            if offload is not Offload.NONE:
                seen.needs[offload], seen.at_s = pixels, self._clock()
            self._write()
        for each in [each for each in self._seen.values() if each.task == task and each.way.within(way)]:
            each.fits_px = max(each.fits_px, pixels)
            if each.too_large_px is not None and pixels >= each.too_large_px:
                each.too_large_px = None
                self._write()

    def forget(self, model: str) -> None:
        """An operator wants it tried again."""
        self._seen = {key: each for key, each in self._seen.items() if each.way.model != model}
        self._write()

    def _of(self, way: Way, task: str) -> _Seen:
        return self._seen.setdefault((way, task), _Seen(way, task))

    def _limit(self, seen: _Seen) -> MemoryLimit | None:
        if seen.too_large_px is None or not self._trusted(seen):
            return None
        return MemoryLimit(too_large_px=seen.too_large_px, fits_px=max(1, seen.fits_px, seen.too_large_px // 2))

    def _trusted(self, seen: _Seen) -> bool:
        return self._clock() - seen.at_s < TRUSTED_S

    def _write(self) -> None:
        """Replace the file as a whole. One that cannot be written is told and else ignored: the limits hold without it."""
        if self._path is None:
            return
        limits = [asdict(each) for each in self._seen.values() if each.too_large_px is not None or each.needs]
        unfinished = self._path.with_name(f"{self._path.name}.part")
        try:
            unfinished.write_text(json.dumps(limits, indent=1))
            unfinished.replace(self._path)
        except OSError as error:
            log.warning("memory_limits_not_kept", path=str(self._path), reason=error.strerror)


def _read(path: Path | None) -> list[_Seen]:
    """What was kept; nothing where the file is not there or not understood, for it is only a memory."""
    if path is None or not path.exists():
        return []
    try:
        values: Any = json.loads(path.read_text())
        return TypeAdapter(list[_Seen]).validate_python(values)
    except (OSError, ValueError, ValidationError) as error:
        log.warning("memory_limits_not_read", path=str(path), reason=type(error).__name__)
        return []
