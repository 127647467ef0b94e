"""Which runs may share a pass, and how those whose turn has come together are sent to the worker together."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import MISSING, fields, replace

from common.images_api import OutputFormat
from node.engines.base import RunSpec

Send = Callable[[Sequence[int], int], None]
"""node.worker.handle.Worker.send"""
_PLAIN = {
    each.name: each.default
    for each in fields(RunSpec)
    if each.default is not MISSING and each.name not in ("true_cfg_scale", "loras", "previews")
}
"""What a run that can share says of everything it may ask for beyond a picture from text."""


def shared_key(spec: RunSpec) -> Hashable | None:
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
    """Runs whose turn has come together. They are sent when every one of them is ready or gone."""

    def __init__(self, pictures: dict[str, int], batch: int) -> None:
        """pictures: of each run, by its id. batch: at most so many in a pass."""
        self._awaited = dict(pictures)
        self._ready: dict[str, tuple[int, int]] = {}
        """Run id -> (its number at the worker, its pictures)"""
        self._send: Send | None = None
        self._batch = batch
        self.pictures = 0
        """In all that was sent."""
        self.runs = 0

    def arrive(self, run_id: str, number: int, send: Send) -> None:
        """A run is prepared under a number; with the last of them all are sent."""
        self._ready[run_id] = (number, self._awaited.pop(run_id))
        self._send = send
        self._send_if_complete()

    def leave(self, run_id: str) -> None:
        """A run has ended, one way or another."""
        awaited, ready = self._awaited.pop(run_id, None), self._ready.pop(run_id, None)
        if awaited is not None or ready is not None:
            self._send_if_complete()

    def _send_if_complete(self) -> None:
        if self._awaited or not self._ready or self._send is None:
            return
        numbers = [number for number, _ in self._ready.values()]
        self.runs, self.pictures = len(numbers), sum(pictures for _, pictures in self._ready.values())
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
