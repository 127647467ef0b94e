"""Pictures made larger behind the pass that made them: by plain enlargement or a network, then drawn over if wanted."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from PIL import Image

from node.engines import rrdb
from node.engines.base import EngineFailed, LoadOrder, Made, OnStep, RunSpec, UpscaleUse
from node.extras import Place
from node.masks import Canvas

Once = Callable[[RunSpec, Canvas | None, OnStep], Made]
"""Makes the pictures of a spec in one pass."""


class Upscaling:
    """What makes pictures larger. It keeps one network, the last that was used."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._held: tuple[str, rrdb.RRDBNet] | None = None

    def made(self, order: LoadOrder, spec: RunSpec, canvas: Canvas | None, on_step: OnStep, once: Once) -> Made:
        """The pictures of a spec through every pass it has; each step is told as one of all of them.

        Raises: EngineFailed, CheckpointRefused, OSError; what `once` and `on_step` raise.
        """
        if spec.upscale is None:
            return once(spec, canvas, on_step)
        first = once(spec, canvas, _counted(on_step, 0, spec.total_steps))
        done = spec.forwards * len(spec.seeds)
        use = spec.upscale
        larger = [self._larger(image, use, order.upscalers, lambda: on_step(done, spec.total_steps)) for image in first.images]
        second = spec.second_pass
        if second is None:
            return replace(first, images=larger)
        passes = []
        for seed, image in zip(spec.seeds, larger, strict=True):
            counted = _counted(on_step, done, spec.total_steps)
            passes.append(once(replace(second, seeds=(seed,)), Canvas(image, None), counted))
            done += second.forwards
        timings_s = {phase: sum(each.timings_s.get(phase, 0.0) for each in (first, *passes)) for phase in first.timings_s}
        return replace(first, images=[each.images[0] for each in passes], timings_s=timings_s)

    def _larger(
        self, picture: Image.Image, use: UpscaleUse, places: Sequence[Place], before_tile: Callable[[], None]
    ) -> Image.Image:
        target = (use.size.width_px, use.size.height_px)
        if use.sha256 is not None:
            net = self._net(use, use.sha256, places)
            picture = rrdb.enlarged(net, picture, self._device, before_tile)
            if net.shape.scale > 1 and picture.width < target[0]:
                picture = rrdb.enlarged(net, picture, self._device, before_tile)
        return picture if picture.size == target else picture.resize(target, Image.Resampling.LANCZOS)

    def _net(self, use: UpscaleUse, sha256: str, places: Sequence[Place]) -> rrdb.RRDBNet:
        if self._held is None or self._held[0] != sha256:
            place = next((each for each in places if each.name == use.method), None)
            if place is None:
                raise EngineFailed(f"The upscaler {use.method!r} is not known to the worker.", retryable=True)
            # The other one leaves first: the memory of both was never promised.
            self._held = None
            self._held = (sha256, rrdb.load(place, self._device))
        return self._held[1]


def _counted(on_step: OnStep, before: int, total: int) -> OnStep:
    """Tells the steps of one pass as those of all."""
    return lambda step, steps: on_step(before + step, total)
