"""Finished latents as pictures, and how far a device may be behind.

On CUDA a decode runs beside the steps of the others, on a thread and a stream of its own: both leave a part of the device
idle, and the next step need not wait for a picture's way through main memory. Its price is the memory of both at once; where
that runs out the picture is decoded once more between two steps, and in tiles where even that is too much. On a CPU both
would share the same cores, so nothing would be gained and every answer come later: there, and on MPS, whose kernels all go
through one queue, a picture is decoded between two steps as soon as it is finished.
"""

import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
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
        beside: bool,
    ) -> None:
        """beside: on a thread of its own."""
        self._decode = decode
        self._vae = vae
        self._free_caches = free_caches
        self._thread = ThreadPoolExecutor(1, "decode") if beside else None
        on_cuda = beside and device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if on_cuda else None  # type: ignore[no-untyped-call]
        self._under_way: list[Future[Decoded]] = []

    @property
    def busy(self) -> bool:
        """Whether pictures are still on their way out."""
        return bool(self._under_way)

    def begin(self, painting: Painting) -> None:
        """Decode a finished painting, now or beside."""
        if self._thread is None:
            done: Future[Decoded] = Future()
            done.set_result(self._decoded(painting))
            self._under_way.append(done)
            return
        steps_made = None if self._stream is None else torch.cuda.current_stream().record_event()
        self._under_way.append(self._thread.submit(self._beside, painting, steps_made))

    def ready(self) -> list[Decoded]:
        """Those that have come out since it was asked last."""
        done = [each for each in self._under_way if each.done()]
        self._under_way = [each for each in self._under_way if not each.done()]
        return [self._once_more(each.result()) for each in done]

    def wait(self) -> None:
        """Returns when one is ready."""
        wait(self._under_way, return_when=FIRST_COMPLETED)

    def close(self) -> None:
        """End the thread, after what is under way."""
        if self._thread is not None:
            self._thread.shutdown()

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
        """Where memory ran out: again between two steps with every cache given back, then in tiles."""
        if not isinstance(decoded.picture, OutOfDeviceMemory):
            return decoded
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
