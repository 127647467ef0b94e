"""Which runs may share a pass, and how those whose turn has come together are sent to the worker together."""

import itertools
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import MISSING, fields, replace
from typing import Any

from common.images_api import OutputFormat, Size
from node.engines.base import RunSpec
from node.pipeline_classes import Family

Send = Callable[[Sequence[int], int], None]
"""node.worker.handle.Worker.send"""
_PLAIN = {
    each.name: each.default
    for each in fields(RunSpec)
    if each.default is not MISSING and each.name not in ("true_cfg_scale", "loras", "previews")
}
"""What a run that can share says of everything it may ask for beyond a picture from text."""

_OF_ONE_STEP: dict[str, Any] = {"steps": 0, "guidance": 0.0, "sampler": "", "timestep_spacing": None}
_ANY_SIZE: dict[str, Any] = {"drawn": Size(1, 1), "size": Size(1, 1)}
STEPPED: dict[Family, dict[str, Any]] = {
    Family.SD15: _OF_ONE_STEP,
    Family.SDXL: _OF_ONE_STEP,
    Family.Z_IMAGE: _OF_ONE_STEP | _ANY_SIZE,
}
"""Families whose runs may come and go between steps, and what besides they may then differ in, as it is in their key."""


def steps_key(spec: RunSpec, family: Family, *, exact: bool = False) -> Hashable | None:
    """What runs must have in common for one to join another that is at work; None for one that joins nobody.

    exact: one that shares no step, and joins only others like it, of any size, when those have made their last steps.
    """
    key = shared_key(spec)
    if key is None or family not in STEPPED or spec.loras:
        return None
    return exact, replace(key, **STEPPED[family] | (_ANY_SIZE if exact else {}))


def shared_key(spec: RunSpec) -> RunSpec | None:
    """What runs must have in common to share a pass; None for one that can share with nobody.

    Everything but what a pass keeps apart by picture. A run that asks for more than a picture from text shares with nobody
    until someone says otherwise: presets that skip work, for one, decide by all pictures of a pass whether to, so that one
    would change another by more than rounding.
    """
    if any(getattr(spec, name) != default for name, default in _PLAIN.items()):
        return None
    return replace(
        spec,
        prompt="",
        negative_prompt="",
        seeds=(),
        size=spec.drawn,
        output_format=OutputFormat.PNG,
        output_compression=None,
        quality="",
        embed_parameters=False,
        previews=0,
    )


class Share:
    """Runs whose turn has come together, and those that join them. They are sent when every one of them is ready or gone."""

    _numbers = itertools.count(1)

    def __init__(self, pictures: dict[str, int], batch: int) -> None:
        """pictures: of each run, by its id. batch: at most so many in a pass."""
        self._awaited = dict(pictures)
        self._ready: dict[str, tuple[int, int]] = {}
        """Run id -> (its number at the worker, its pictures)"""
        self._send: Send | None = None
        self._batch = batch
        self.number = next(self._numbers)
        """Under which the worker knows those of it that may be joined."""
        self.pictures = 0
        """In all that was sent."""
        self._sent: set[str] = set()
        """Ids of the runs that were sent and have not left."""

    @property
    def runs(self) -> int:
        """How many of them are in the worker."""
        return len(self._sent)

    def join(self, run_id: str, pictures: int, batch: int) -> None:
        """One more is to come. batch: at most so many in a pass from now on."""
        self._awaited[run_id] = pictures
        self._batch = max(self._batch, batch)

    def arrive(self, run_id: str, number: int, send: Send) -> None:
        """A run is prepared under a number; with the last of them all are sent."""
        self._ready[run_id] = (number, self._awaited.pop(run_id))
        self._send = send
        self._send_if_complete()

    def leave(self, run_id: str) -> None:
        """A run has ended, one way or another."""
        self._sent.discard(run_id)
        awaited, ready = self._awaited.pop(run_id, None), self._ready.pop(run_id, None)
        if awaited is not None or ready is not None:
            self._send_if_complete()

    def _send_if_complete(self) -> None:
        if self._awaited or not self._ready or self._send is None:
            return
        numbers = [number for number, _ in self._ready.values()]
        self._sent |= self._ready.keys()
        self.pictures += sum(pictures for _, pictures in self._ready.values())
        self._ready.clear()
        self._send(numbers, min(self._batch, self.pictures))


def companions(pictures: Iterable[tuple[str, int]], batch: int) -> list[str]:
    """Of runs in the order of their turns those that fit into one pass with the first, which comes in any case."""
    chosen: list[str] = []
    room = batch
    for run_id, count in pictures:
        if not chosen or count <= room:
            chosen.append(run_id)
            room -= count
    return chosen
