"""Several runs in one pass of a pipeline: their pictures side by side, each from noise of its own.

It is worth it where the device is not busy with one picture. A pass is not the same arithmetic as one picture after
another: kernels add in another order by the size of a batch, so pictures differ by rounding. Each is decoded by itself,
which costs nothing and takes a part of that difference away, and the memory of a batched autoencoder.

No run pays for another: one that is cancelled drops out while the pass goes on, a pass that does not fit the memory is
made in halves, and one that fails is made again picture by picture, so that only the run at fault fails.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Any, Protocol

import torch
from PIL import Image

from common.errors import AquatintError
from node.engines.base import LoadOrder, Made, Member, OutOfDeviceMemory, PassTime, RunCancelled, RunSpec
from node.engines.families import calls_of
from node.engines.previews import Decode, Previews, Watching
from node.engines.prompt_cache import PromptCache
from node.engines.prompts import Prompt, read_prompt, side_by_side
from node.engines.samplers import make_sampler

Outcome = Made | AquatintError


class Finish(Protocol):
    """A picture as the pipeline gives it -> RGB of the size asked for."""

    def __call__(self, image: Image.Image, spec: RunSpec) -> Image.Image: ...


@dataclass(slots=True, eq=False)
class _Run:
    """One member and what is there of it."""

    member: Member
    prompt: Prompt | None = None
    images: dict[int, Image.Image] = field(default_factory=dict)
    """By the number of its seed."""
    timings_s: dict[str, float] = field(default_factory=lambda: {"encode": 0.0, "denoise": 0.0, "decode": 0.0})
    passes: list[PassTime] = field(default_factory=list)
    batch: int = 1
    sampler: str = ""
    layers: dict[str, int] = field(default_factory=dict)
    tiled: bool = False
    error: AquatintError | None = None

    @property
    def wanted(self) -> bool:
        return self.error is None

    def step(self, made: int) -> None:
        """Tell that `made` steps of its pictures at work are made. A run that is cancelled is not wanted any more."""
        forwards = self.member.spec.forwards
        try:
            self.member.on_step(len(self.images) * forwards + made, forwards * len(self.member.spec.seeds))
        except RunCancelled as cancelled:
            self.error = cancelled

    def outcome(self) -> Outcome:
        if self.error is not None:
            return self.error
        assert self.prompt is not None
        return Made(
            [self.images[index] for index in range(len(self.member.spec.seeds))],
            self.timings_s,
            self.prompt.tokens,
            self.prompt.truncated,
            self.sampler,
            self.layers,
            self.tiled,
            self.batch,
            tuple(self.passes),
        )


@dataclass(frozen=True, slots=True)
class _Picture:
    run: _Run
    index: int

    @property
    def seed(self) -> int:
        return self.run.member.spec.seeds[self.index]


class Together:
    """The passes of one order, over a pipeline that is loaded. All members agree in everything but what `Member` says."""

    def __init__(
        self,
        order: LoadOrder,
        pipeline: Any,
        *,
        at_work: Callable[[RunSpec], AbstractContextManager[dict[str, int]]],
        alone: Callable[[Member], Made],
        finish: Finish,
        decode_previews: Decode,
        free_caches: Callable[[], None],
        prompts: PromptCache,
    ) -> None:
        """at_work: has in effect what a run wants of the loaded model, and errors of libraries as ours.

        alone: makes a run by itself, with every means the engine has when memory runs out.
        """
        self._order = order
        self._pipeline = pipeline
        self._calls = calls_of(order.checkpoint.family)
        self._alone = alone
        self._finish = finish
        self._free_caches = free_caches
        self._prompts = prompts
        self._at_work = at_work
        self._decode_previews = decode_previews

    def made(self, members: Sequence[Member], batch: int) -> list[Outcome]:
        """The pictures or the error of each member, in passes of at most `batch` pictures."""
        runs = [_Run(member) for member in members]
        for run in runs:
            self._read(run)
        pictures = [_Picture(run, index) for run in runs if run.wanted for index in range(len(run.member.spec.seeds))]
        for part in in_passes(pictures, batch):
            self._pass(part)
        return [run.outcome() for run in runs]

    def _read(self, run: _Run) -> None:
        began, spec = time.perf_counter(), run.member.spec
        try:
            with self._at_work(spec) as run.layers:
                run.prompt = self._prompts.get(spec, None, lambda: read_prompt(self._order, self._pipeline, spec, None))
        except AquatintError as error:
            run.error = error
        run.timings_s["encode"] = time.perf_counter() - began

    def _pass(self, pictures: Sequence[_Picture]) -> None:
        """Make these pictures, whatever happens to some of them."""
        pictures = [picture for picture in pictures if picture.run.wanted]
        if len(pictures) <= 1:
            for picture in pictures:
                self._single(picture)
            return
        parts: Sequence[Sequence[_Picture]] = [[picture] for picture in pictures]
        try:
            self._paint(pictures)
            return
        except RunCancelled:
            return
        except OutOfDeviceMemory:
            half = len(pictures) // 2
            parts = [pictures[:half], pictures[half:]]
            pictures[0].run.passes.append(PassTime(len(pictures), None))
        except AquatintError:
            pass
        # Behind the handlers, for an error in hand keeps the tensors of all its frames.
        self._free_caches()
        for part in parts:
            self._pass(part)

    def _single(self, picture: _Picture) -> None:
        run = picture.run
        spec = replace(run.member.spec, seeds=(picture.seed,), previews=run.member.spec.previews if picture.index == 0 else 0)
        before = len(run.images) * spec.forwards
        total = spec.forwards * len(run.member.spec.seeds)
        alone = Member(spec, lambda step, steps: run.member.on_step(before + step, total), run.member.on_preview)
        try:
            made = self._alone(alone)
        except AquatintError as error:
            run.error = error
            return
        run.images[picture.index] = made.images[0]
        run.sampler, run.tiled = made.sampler, run.tiled or made.vae_tiled
        for phase in ("denoise", "decode"):
            run.timings_s[phase] += made.timings_s[phase]
        if not made.vae_tiled:
            run.passes.append(PassTime(1, made.timings_s["denoise"] + made.timings_s["decode"]))

    def _paint(self, pictures: Sequence[_Picture]) -> None:
        """One call of the pipeline. Raises: RunCancelled: nobody wants any of them any more."""
        spec, pipeline = pictures[0].run.member.spec, self._pipeline
        prompts = [picture.run.prompt for picture in pictures if picture.run.prompt is not None]
        own_sampler = pipeline.scheduler
        with self._at_work(spec), _decoding_one_by_one(pipeline.vae):
            try:
                pipeline.scheduler = make_sampler(spec.sampler, own_sampler, spec.timestep_spacing)
                clock = _PassClock(pictures, self._previews(pictures))
                made = pipeline(
                    **side_by_side(prompts),
                    **self._calls.start(spec, None),
                    num_inference_steps=spec.steps,
                    **self._calls.guidance(spec),
                    generator=[torch.Generator("cpu").manual_seed(picture.seed) for picture in pictures],
                    callback_on_step_end=clock,
                    output_type="pil",
                ).images
                sampler = type(pipeline.scheduler).__name__
            finally:
                pipeline.scheduler = own_sampler
        took_s = clock.phases_s()
        for run in {picture.run: None for picture in pictures}:
            run.sampler, run.batch = sampler, max(run.batch, len(pictures))
            for phase, seconds in took_s.items():
                run.timings_s[phase] += seconds
        for picture, image in zip(pictures, made, strict=True):
            picture.run.images[picture.index] = self._finish(image, picture.run.member.spec)
        teller = next((picture.run for picture in pictures if picture.run.wanted), pictures[0].run)
        teller.passes.append(PassTime(len(pictures), sum(took_s.values())))

    def _previews(self, pictures: Sequence[_Picture]) -> list[Previews]:
        """Those of each run's first picture, where it is in this pass."""
        found = []
        for row, picture in enumerate(pictures):
            member = picture.run.member
            if picture.index == 0 and member.spec.previews:
                finish = partial(self._finish, spec=member.spec)
                found.append(Previews(member.spec, Watching(member.on_preview, self._decode_previews), finish, row=row))
        for each in found:
            each.watch(self._pipeline.scheduler)
        return found


class _PassClock:
    """The callback of one pass: tells each run its steps, and denoising from decoding."""

    def __init__(self, pictures: Sequence[_Picture], previews: Sequence[Previews]) -> None:
        self._counts = {run: sum(picture.run is run for picture in pictures) for run in {p.run: None for p in pictures}}
        self._forwards = pictures[0].run.member.spec.forwards
        self._previews = previews
        self._began = self._last_step = time.perf_counter()

    def __call__(self, pipeline: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        self._last_step = time.perf_counter()
        # Solvers of higher order call back more often than there are steps.
        made = min(step + 1, self._forwards)
        for run, count in self._counts.items():
            if run.wanted:
                run.step(made * count)
        if not any(run.wanted for run in self._counts):
            raise RunCancelled("Every run of the pass was cancelled.")
        for each in self._previews:
            each.after(pipeline, step + 1)
        return {}

    def phases_s(self) -> dict[str, float]:
        """Seconds by phase, at the end of the call."""
        return {"denoise": self._last_step - self._began, "decode": time.perf_counter() - self._last_step}


def in_passes(pictures: Iterable[_Picture], batch: int) -> Iterator[list[_Picture]]:
    """Pictures whose prompts have one shape, in passes of `batch` and, of the rest, of ever smaller powers of two.

    Few sizes of a pass are few to measure, and few to compile for.
    """

    def shape(picture: _Picture) -> Any:
        return None if picture.run.prompt is None else picture.run.prompt.shape

    for _, group in groupby(sorted(pictures, key=lambda picture: str(shape(picture))), key=shape):
        rest = list(group)
        while rest:
            size = min(batch, 1 << (len(rest).bit_length() - 1))
            yield rest[:size]
            rest = rest[size:]


@contextmanager
def _decoding_one_by_one(vae: Any) -> Iterator[None]:
    """Have an autoencoder decode the pictures of a pass one after another, where it can."""
    if not hasattr(vae, "use_slicing") or vae.use_slicing:
        yield
        return
    vae.enable_slicing()
    try:
        yield
    finally:
        vae.disable_slicing()
