"""Who is in the next step, and what becomes of a step that fails.

Pictures at work stay at work until they are finished, the oldest first; a free place goes to the run that has the fewest. No
run pays for another: one that is cancelled is gone before the next step, and while it waits for a place just as soon. A step
that does not fit the memory is tried again with half of its pictures, and the others wait where they are; one that fails is
tried again picture by picture, for nothing is lost before it is made, so that only the run at fault fails.
"""

import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Protocol

import torch
from PIL import Image

from common.errors import AquatintError
from node.engines.base import Entrance, OutOfDeviceMemory, RunSpec
from node.engines.previews import Decode as DecodeLatents
from node.engines.previews import Previews, Watching
from node.engines.prompts import Prompt
from node.engines.stepping.decoding import Decoding, Lead
from node.engines.stepping.families import Painting, Steps
from node.engines.stepping.runs import Run


class Finish(Protocol):
    """A picture as the pipeline gives it -> RGB of the size asked for."""

    def __call__(self, image: Image.Image, spec: RunSpec) -> Image.Image: ...


@dataclass(frozen=True, slots=True)
class Studio:
    """What a loop works with."""

    pipeline: Any
    steps: Steps
    device: torch.device
    read: Callable[[RunSpec], Prompt]
    decode: DecodeLatents
    decode_previews: DecodeLatents
    finish: Finish
    told_as_ours: Callable[[], AbstractContextManager[None]]
    """Has errors of libraries told as ours."""
    free_caches: Callable[[], None]
    decode_beside: Executor | None
    """See Decoding."""


@dataclass(slots=True, eq=False)
class _Place:
    """One picture at work."""

    run: Run
    index: int
    painting: Painting
    previews: Previews | None


class StepLoop:
    """One use of a loaded pipeline, from the first that arrives until nobody is left."""

    def __init__(self, studio: Studio, entrance: Entrance) -> None:
        self._studio = studio
        self._entrance = entrance
        self._runs: list[Run] = []
        self._places: list[_Place] = []
        """The oldest first."""
        self._on_their_way: dict[Painting, _Place] = {}
        self._fits: int | None = None
        """At most so many pictures fit the memory, as this loop has seen."""
        self._lead = Lead(studio.device)
        self._decoding = Decoding(
            self._decoded, studio.pipeline.vae, studio.device, studio.free_caches, beside=studio.decode_beside
        )

    def run(self) -> None:
        """Make what arrives. Without gradients, and with the pipeline as its runs want it."""
        try:
            while self._let_in():
                self._fill()
                if self._places:
                    self._step()
                elif self._decoding.under_way:
                    self._entrance.wait(self._decoding.under_way)
                self._see_out()
        finally:
            self._decoding.settle()

    def _let_in(self) -> bool:
        """Take in those that have arrived. False when nobody is here."""
        for member in self._entrance.arrived():
            run = Run(member)
            self._runs.append(run)
            began = time.perf_counter()
            with _fails_alone(run, self._studio):
                run.prompt = self._studio.read(member.spec)
                run.waiting.extend(range(len(member.spec.seeds)))
            run.encode_s = time.perf_counter() - began
        return bool(self._runs)

    @property
    def _room(self) -> int:
        return self._entrance.batch if self._fits is None else min(self._entrance.batch, self._fits)

    def _fill(self) -> None:
        """Begin pictures while there are places, and not far ahead of the decoding."""
        while len(self._places) < self._room and len(self._on_their_way) <= self._room:
            waiting = [run for run in self._runs if run.waiting and run.error is None]
            if not waiting:
                return
            self._begin(min(waiting, key=lambda run: sum(place.run is run for place in self._places)))

    def _begin(self, run: Run) -> None:
        spec, index = run.member.spec, run.waiting.popleft()
        assert run.prompt is not None
        with _fails_alone(run, self._studio):
            painting = self._studio.steps.begin(spec, run.prompt, spec.seeds[index])
            run.sampler, run.sampler_steps = type(painting.sampler).__name__, len(painting.sampler.timesteps)
            previews = None
            if index == 0 and spec.previews:
                watching = Watching(run.member.on_preview, self._studio.decode_previews)
                previews = Previews(spec, watching, partial(self._studio.finish, spec=spec))
                previews.watch(painting.sampler)
            self._places.append(_Place(run, index, painting, previews))

    def _step(self) -> None:
        """One step of as many as there is room for. Whoever waits is told as well, or it could not be cancelled."""
        chosen = self._places[: self._room]
        for group in _alike(chosen, lambda place: self._studio.steps.alike(place.painting)):
            self._step_of(group, whole=len(group) == len(chosen))
        for run in self._runs:
            if run.error is None:
                with _fails_alone(run, self._studio):
                    run.tell_step(sum(place.painting.told for place in self._places if place.run is run))
        for place in self._places:
            if place.previews is not None and place.run.error is None:
                with _fails_alone(place.run, self._studio):
                    place.previews.after(self._studio.pipeline, place.painting.done)
        finished = [place for place in self._places if place.painting.finished]
        self._places = [place for place in self._places if not place.painting.finished and place.run.error is None]
        for place in finished:
            self._hand_over(place)

    def _hand_over(self, place: _Place) -> None:
        """Have a finished picture decoded. Its answer may be ready at once, and need not wait for another picture's."""
        if place.run.error is None:
            place.run.denoised += 1
            self._on_their_way[place.painting] = place
            self._decoding.begin(place.painting)
            self._see_out()

    def _step_of(self, group: Sequence[_Place], *, whole: bool) -> None:
        """whole: nobody else is in this step, so that its time is that of its pictures."""
        began, message = time.perf_counter(), None
        try:
            predicted = self._predicted(group)
        except OutOfDeviceMemory as error:
            message = error.message
        except AquatintError as error:
            if len(group) == 1:
                group[0].run.error = error
            for place in group if len(group) > 1 else ():
                self._step_of([place], whole=False)
            return
        if message is not None:
            # Behind the handler, for an error in hand keeps the tensors of all its frames.
            self._too_large(group, message)
            return
        for place, each in zip(group, predicted, strict=True):
            with _fails_alone(place.run, self._studio):
                place.painting.advance(each)
        self._lead.step_ordered()
        self._note(group, time.perf_counter() - began, whole=whole)

    def _predicted(self, group: Sequence[_Place]) -> Sequence[torch.Tensor]:
        paintings = [place.painting for place in group]
        try:
            with self._studio.told_as_ours():
                return self._studio.steps.predict(paintings)
        except OutOfDeviceMemory:
            if len(group) > 1:
                raise
        # There is no half of one: once more with nothing beside it and every cache given back.
        self._decoding.settle()
        self._studio.free_caches()
        with self._studio.told_as_ours():
            return self._studio.steps.predict(paintings)

    def _too_large(self, group: Sequence[_Place], message: str) -> None:
        self._studio.free_caches()
        if len(group) == 1:
            group[0].run.error = OutOfDeviceMemory(message)
            return
        self._fits = len(group) // 2
        largest = max(group, key=lambda place: place.run.member.spec.drawn.pixels)
        largest.run.too_large.append(len(group))

    def _note(self, group: Sequence[_Place], seconds: float, *, whole: bool) -> None:
        runs = {place.run: None for place in group}
        for run in runs:
            run.stepped(len(group), sum(place.run is run for place in group), seconds)
        # Of pictures that are not alike the time says nothing of either.
        if whole and len({_cost(run) for run in runs}) == 1:
            group[0].run.steps_s.setdefault(len(group), []).append(seconds)

    def _decoded(self, painting: Painting) -> Image.Image:
        with self._studio.told_as_ours():
            picture = self._studio.decode(self._studio.pipeline, painting.latents, painting.spec)
            return self._studio.finish(picture, painting.spec)

    def _see_out(self) -> None:
        """Give every run that is complete its answer."""
        for decoded in self._decoding.ready():
            place = self._on_their_way.pop(decoded.painting)
            run = place.run
            run.decode_s.append(decoded.seconds)
            run.tiled = run.tiled or decoded.tiled
            if isinstance(decoded.picture, AquatintError):
                run.error = run.error or decoded.picture
            else:
                run.images[place.index] = decoded.picture
        for run in [run for run in self._runs if run.complete]:
            self._entrance.ended(run.member, run.outcome())
        self._runs = [run for run in self._runs if not run.complete]
        self._places = [place for place in self._places if place.run.error is None]


@contextmanager
def _fails_alone(run: Run, studio: Studio) -> Iterator[None]:
    """What goes wrong within the block, or a cancel, ends this run and no other."""
    try:
        with studio.told_as_ours():
            yield
    except AquatintError as error:
        run.error = error


def _cost(run: Run) -> Hashable:
    """What a step of a picture costs by, beside the model."""
    return run.member.spec.drawn, run.member.spec.guidance > 1


def _alike(places: Iterable[_Place], key: Callable[[_Place], Hashable]) -> Iterator[list[_Place]]:
    for _, group in groupby(sorted(places, key=lambda place: str(key(place))), key=key):
        yield list(group)
