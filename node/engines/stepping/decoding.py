"""Finished latents as pictures, and how far a device may be behind.

A decode may run beside the steps of the others, on a thread of its own. On CUDA it has a stream of its own as well: both
leave a part of the device idle, and the next step need not wait for a picture's way through main memory. On a CPU it has
cores of its own, as many as the steps, where there are so many. Its price is the memory of both at once; where that runs
out the picture is decoded once more with nothing beside it, and in tiles where even that is too much. Where both would
share the same cores nothing would be gained and every answer come later: there, and on MPS, whose kernels all go through
one queue, a picture is decoded between two steps as soon as it is finished.
"""

import time
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from common.errors import AquatintError
from node.engines.base import OutOfDeviceMemory
from node.engines.stepping.families import Painting

Decode = Callable[[Painting], Image.Image]
"""A finished painting -> RGB as the client gets it. Raises: AquatintError."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """What came of a finished painting."""

    painting: Painting
    picture: Image.Image | AquatintError
    seconds: float
    tiled: bool = False


class Decoding:
    """The decodes of one loop. Every method is called by its thread."""

    def __init__(
        self,
        decode: Decode,
        vae: Any,
        device: torch.device,
        free_caches: Callable[[], None],
        *,
        beside: Executor | None,
    ) -> None:
        """beside: one thread, for decodes beside the steps; None where they come between them."""
        self._decode = decode
        self._vae = vae
        self._free_caches = free_caches
        self._thread = beside
        on_cuda = beside is not None and device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if on_cuda else None  # type: ignore[no-untyped-call]
        self.under_way: list[Future[Decoded]] = []
        """Those that are not out yet, or were not asked for yet."""

    def begin(self, painting: Painting) -> None:
        """Decode a finished painting, now or beside."""
        if self._thread is None:
            done: Future[Decoded] = Future()
            done.set_result(self._decoded(painting))
            self.under_way.append(done)
            return
        steps_made = None if self._stream is None else torch.cuda.current_stream().record_event()
        self.under_way.append(self._thread.submit(self._beside, painting, steps_made))

    def ready(self) -> list[Decoded]:
        """Those that have come out since it was asked last."""
        done = [each for each in self.under_way if each.done()]
        self.under_way = [each for each in self.under_way if not each.done()]
        return [self._once_more(each.result()) for each in done]

    def settle(self) -> None:
        """Returns when all are out, so that nothing is beside what comes next."""
        wait(self.under_way)

    def _beside(self, painting: Painting, steps_made: torch.cuda.Event | None) -> Decoded:
        # The gradient mode and the current stream belong to a thread.
        with torch.no_grad():
            if self._stream is None or steps_made is None:
                return self._decoded(painting)
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(steps_made)
                # Or its memory may be given away, on the other stream, before it is read on this one.
                painting.latents.record_stream(self._stream)
                return self._decoded(painting)

    def _decoded(self, painting: Painting, *, tiled: bool = False) -> Decoded:
        began = time.perf_counter()
        picture: Image.Image | AquatintError
        try:
            picture = self._decode(painting)
        except OutOfDeviceMemory as error:
            # Anew, for the one in hand keeps the tensors of all its frames.
            picture = OutOfDeviceMemory(error.message)
        except AquatintError as error:
            picture = error
        return Decoded(painting, picture, time.perf_counter() - began, tiled)

    def _once_more(self, decoded: Decoded) -> Decoded:
        """Where memory ran out: again with nothing beside it and every cache given back, then in tiles."""
        if not isinstance(decoded.picture, OutOfDeviceMemory):
            return decoded
        # Nor may tiles come over another picture.
        self.settle()
        self._free_caches()
        if self._thread is not None:
            decoded = self._decoded(decoded.painting)
        if isinstance(decoded.picture, OutOfDeviceMemory) and hasattr(self._vae, "enable_tiling"):
            self._free_caches()
            self._vae.enable_tiling()
            try:
                decoded = self._decoded(decoded.painting, tiled=True)
            finally:
                self._vae.disable_tiling()
        return decoded


class Lead:
    """Keeps the loop at most one step ahead of a CUDA device.

    Launching is quicker than computing: without it a loop would order many steps ahead, and whoever comes or is cancelled
    would wait for all of them. One step ahead is enough to keep the device busy. Elsewhere a step is made when it returns.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._last: torch.cuda.Event | None = None

    def step_ordered(self) -> None:
        """Returns when the step before the one just ordered is made."""
        if not self._on_cuda:
            return
        last, self._last = self._last, torch.cuda.current_stream().record_event()
        if last is not None:
            last.synchronize()
