"""The node's handle on its worker: starts it, gives it orders, notices when it dies or hangs, and starts another."""

import asyncio
import itertools
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.errors import AquatintError, Unavailable
from common.logs import get_logger
from common.node_api import DeviceStatus
from node.engine_names import EngineName
from node.engines.base import (
    LoadOrder,
    OnStep,
    PassTime,
    RunCancelled,
    RunSpec,
)
from node.masks import Canvas
from node.tuning import USUAL, Tuning
from node.worker.causes import WorkerLost, failure_of, lost
from node.worker.frames import Frame, FrameError, pack, read_frame_from
from node.worker.orders import Memory, canvas_to_blobs, canvas_to_json, control_blobs, load_to_json, together_to_json
from node.worker.output import log_output

log = get_logger(__name__)

BACKOFF_S = (0.0, 0.5, 2.0, 5.0, 15.0, 30.0)
"""Waits before the next start after 0, 1, 2, ... deaths in a row; the last one repeats."""
EXIT_S = 20.0
"""How long a child that closed its socket may take to end; a core dump of a large process takes seconds."""
BROKEN_AFTER = 3
"""Deaths in a row before a single hello after which calls are refused at once rather than kept waiting."""


OnFile = Callable[[int, bytes], None]
"""Called with (number, file) of each preview."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the worker may be silent before it is taken for hung and killed."""

    start_s: float = 180.0
    """Until its hello: torch alone takes 5..20 s to import, more from a cold network disk."""
    silence_s: float = 60.0
    """Between two messages of any kind. It says every 2 s that it lives, from a thread of its own."""
    stall_s: float = 1800.0
    """Between two steps of a run, or for a load: a picture of a large model on a CPU takes minutes a step."""


@dataclass(frozen=True, slots=True)
class Product:
    """What the worker made of a spec."""

    files: tuple[bytes, ...]
    """Encoded pictures, in the order of the spec's seeds."""
    timings_s: dict[str, float]
    prompt_tokens: int
    prompt_truncated: bool
    sampler: str
    """Class of the solver that ran."""
    lora_layers: dict[str, int] = field(default_factory=dict)
    """Layers that each LoRA changed, by its name."""
    vae_tiled: bool = False
    """Whether the autoencoder worked in tiles, because memory had run out."""
    batch: int = 1
    """Pictures in the largest pass that made some of these."""
    passes: tuple[PassTime, ...] = ()
    """Passes to learn from; empty for a run that was made alone."""
    own_s: float | None = None
    """Its share of the device's seconds, where others came and went; None where that was even, or it was alone."""


@dataclass(frozen=True, slots=True)
class Order:
    """A run as the worker gets it."""

    spec: RunSpec
    on_step: OnStep | None = None
    canvas: Canvas | None = None
    """The input, of size `spec.size`."""
    on_preview: OnFile | None = None
    """Called with (number, file) of each preview."""
    on_begin: Callable[[], None] | None = None
    """Called when the device turns to it: what was sent while another run was at work waits for that in the child."""


@dataclass(slots=True)
class _Call:
    order: dict[str, Any]
    blobs: Sequence[bytes]
    answered: asyncio.Future[Frame]
    run: Order | None
    last_sign: float = field(default_factory=time.monotonic)
    cancelled: bool = False


class Worker:
    """One child process at a time. Every method may be called from many tasks; the child does one thing after another."""

    def __init__(
        self,
        *,
        device: str = "auto",
        engine: EngineName = EngineName.DIFFUSERS,
        threads: int = 1,
        tuning: Tuning = USUAL,
        compiled_path: Path | None = None,
        patience: Patience = Patience(),
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        """engine: the one a child has ready when it says hello; others are imported when a model needs them.

        compiled_path: folder that keeps compiled code for the next child; torch's own when absent.
        on_lost: called when a child has died or is about to: whatever was loaded in it is gone.
        """
        self._device_wanted = device
        self._engine = engine
        self._threads = threads
        self._tuning = tuning
        self._compiled_path = compiled_path
        self.patience = patience
        """May be changed; it holds from the next message on."""
        self._on_lost = on_lost
        self._numbers = itertools.count(1)
        self._calls: dict[int, _Call] = {}
        """Those the child has, or the next will get."""
        self._unanswered: dict[int, _Call] = {}
        """Those somebody waits for, sent or not."""
        self._writer: asyncio.StreamWriter | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._ready = asyncio.Event()
        self._supervisor: asyncio.Task[None] | None = None
        self._deaths_in_a_row = 0
        self._hung = False
        self._replaced: str | None = None
        """Why the last child was ended by order; None where it was not."""
        self._left = False
        """Whether the last child ended to cancel a run that its engine could not stop: no death, and nothing is amiss."""
        self.restarts = 0
        """Children started after one that died."""
        self.replacements = 0
        """Children started in place of one that was ended by `replace`."""
        self.last_loss: str | None = None
        """Why the last child died."""
        self.device: DeviceStatus | None = None
        """As the child last told it; None until the first hello."""
        self.memory: Memory | None = None
        """What the child holds, as it last told it."""
        self.first_memory: Memory | None = None
        """What it held when it said hello."""
        self.tuning: dict[str, dict[str, str]] = {}
        """How each loaded model computes, as the child last told it."""

    @property
    def ready(self) -> bool:
        """Whether a child is there and has said hello."""
        return self._ready.is_set()

    @property
    def broken(self) -> bool:
        """Whether children die before they can say hello."""
        return self._deaths_in_a_row >= BROKEN_AFTER

    @property
    def pid(self) -> int | None:
        """The child's process id."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Begin to supervise; the first child says hello some seconds later (`wait_ready`)."""
        self._supervisor = asyncio.create_task(self._supervise())

    async def wait_ready(self) -> DeviceStatus:
        """Wait for a child that can take orders.

        Raises: Unavailable: children keep dying before they can.
        """
        while not self._ready.is_set():
            if self.broken:
                raise Unavailable(f"The worker does not start. {self.last_loss}", code="worker_broken", retry_after_s=30)
            with suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await self._ready.wait()
        assert self.device is not None
        return self.device

    async def load(self, order: LoadOrder) -> None:
        """Bring a checkpoint onto the device.

        Raises: EngineFailed, OutOfDeviceMemory, WorkerLost, Unavailable.
        """
        await self._call(load_to_json(order))

    async def unload(self, model: str) -> None:
        """Give a pipeline's memory back. Raises: WorkerLost, Unavailable."""
        await self._call({"kind": "unload", "model": model})

    async def drop_loras(self, model: str, sha256s: Sequence[str]) -> None:
        """Give back the memory of LoRAs beside a pipeline. Raises: WorkerLost, Unavailable."""
        await self._call({"kind": "drop_loras", "model": model, "loras": list(sha256s)})

    async def measure(self) -> Memory:
        """What the child holds once it has given back what it can. Raises: WorkerLost, Unavailable."""
        frame = await self._call({"kind": "measure"})
        return Memory(**frame.header["memory"])

    async def replace(self, reason: str) -> None:
        """End the child and start another, which gets every order that comes from now on; nothing may be at work in it.

        reason: for the log.
        """
        # Nothing is awaited before this: no order may go to a child that is about to end.
        self._ready.clear()
        self._replaced = reason
        self.first_memory = self.memory = None
        self._on_lost()
        if self._writer is not None:
            self._writer.close()

    async def generate(
        self,
        spec: RunSpec,
        on_step: OnStep | None = None,
        *,
        canvas: Canvas | None = None,
        on_preview: OnFile | None = None,
    ) -> Product:
        """Make the pictures of a spec; cancelling the caller stops the run at its next step, then returns.

        canvas: the input, of size `spec.size`. on_preview: called with (number, file) of each preview.

        Raises: EngineFailed, OutOfDeviceMemory, RunCancelled, WorkerLost, Unavailable.
        """
        return await self.product_of(Order(spec, on_step, canvas, on_preview))

    async def product_of(self, order: Order) -> Product:
        """As `generate`."""
        await self.wait_ready()
        number = self.prepare(order)
        self.send([number])
        return await self.product(number)

    def prepare(self, order: Order) -> int:
        """The number of a run that is still to be sent, and is then awaited with `product`."""
        spec, canvas = order.spec, order.canvas
        values = {"kind": "generate", "spec": spec.to_json(), "canvas": canvas_to_json(canvas)}
        return self._new_call(values, canvas_to_blobs(canvas) + control_blobs(spec), order)

    def send(self, numbers: Sequence[int], batch: int = 1, share: int | None = None) -> None:
        """Give prepared runs to the child. Where there is none just now, the next one gets them one by one.

        Several of them, and one when `batch` is above 1, share passes of at most `batch` pictures: text to image only, and
        alike as engines.base.Member says. share: a number under which more may be sent while these are at work, and then
        come in between two steps; alike as engines.base.Entrance says.
        """
        # One whose caller has left in the meantime is not among them.
        calls = {number: self._unanswered[number] for number in numbers if number in self._unanswered}
        self._calls |= calls
        if not calls or not self._ready.is_set():
            return
        if batch == 1 and share is None:
            for call in calls.values():
                self._send(call.order, call.blobs)
        else:
            self._send(together_to_json([call.order for call in calls.values()], batch, share))

    async def product(self, number: int) -> Product:
        """Wait for a prepared run; cancelling the caller stops it at its next step, then returns, and at once if it is
        not sent yet.

        Raises: as `generate`.
        """
        frame = await self._answer_to(number)
        header = frame.header
        return Product(
            frame.blobs,
            header["timings_s"],
            header["prompt_tokens"],
            header["prompt_truncated"],
            header["sampler"],
            header["lora_layers"],
            header["vae_tiled"],
            header["batch"],
            tuple(PassTime(*each) for each in header["passes"]),
            header["own_s"],
        )

    async def close(self) -> None:
        """End the child and the supervision."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        self._fail_calls(Unavailable("The node is shutting down.", code="shutting_down", retry_after_s=5))

    async def _call(self, order: dict[str, Any]) -> Frame:
        await self.wait_ready()
        number = self._new_call(order)
        self._calls[number] = call = self._unanswered[number]
        self._send(call.order)
        return await self._answer_to(number)

    def _new_call(self, order: dict[str, Any], blobs: Sequence[bytes] = (), run: Order | None = None) -> int:
        number = next(self._numbers)
        answered = asyncio.get_running_loop().create_future()
        self._unanswered[number] = _Call(order | {"call": number}, blobs, answered, run)
        return number

    async def _answer_to(self, number: int) -> Frame:
        call = self._unanswered[number]
        try:
            # Shielded: a caller that leaves must not make the child's answer go astray.
            frame = await asyncio.shield(call.answered)
        except asyncio.CancelledError:
            if number in self._calls:
                call.cancelled = True
                self._send({"kind": "cancel", "call": number})
                # The device is free only when the child says so.
                await asyncio.wait({call.answered})
            if call.answered.done() and not call.answered.cancelled():
                call.answered.exception()
            raise
        finally:
            del self._unanswered[number]
            if call.answered.done():
                self._calls.pop(number, None)
        if frame.header["kind"] == "failed":
            raise failure_of(frame.header)
        return frame

    def _send(self, header: dict[str, Any], blobs: Sequence[bytes] = ()) -> None:
        assert self._writer is not None
        self._writer.write(pack(header, blobs))

    async def _supervise(self) -> None:
        while True:
            await asyncio.sleep(BACKOFF_S[min(self._deaths_in_a_row, len(BACKOFF_S) - 1)])
            loss = await self._live()
            self._ready.clear()
            if self._replaced is not None:
                log.warning("worker_replaced", reason=self._replaced)
                self.replacements += 1
                continue
            if self._left:
                log.info("worker_replaced", reason="a run was cancelled that its engine could not stop")
                continue
            self._deaths_in_a_row += 1
            self.last_loss = loss.message
            log.error("worker_lost", reason=loss.message, deaths_in_a_row=self._deaths_in_a_row)
            self._fail_calls(loss)
            self._on_lost()
            self.restarts += 1

    def _fail_calls(self, error: AquatintError) -> None:
        for call in self._calls.values():
            if not call.answered.done():
                call.answered.set_exception(error)
        self._calls.clear()

    async def _live(self) -> WorkerLost:
        """One child from birth to death; gives the reason it died."""
        ours, theirs = socket.socketpair()
        process = await self._spawn(theirs)
        self._process, self._hung, self._left, self._replaced = process, False, False, None
        reader, self._writer = await asyncio.open_connection(sock=ours)
        output = asyncio.create_task(log_output(process))
        try:
            await self._listen(reader)
            returncode = await self._end_of(process)
        finally:
            if process.returncode is None:
                # Only when the supervision itself is ended: nothing of this child is wanted any more.
                process.kill()
                await process.wait()
            self._writer.close()
            output.cancel()
            await asyncio.gather(output, return_exceptions=True)
        return lost(returncode, hung=self._hung)

    async def _end_of(self, process: asyncio.subprocess.Process) -> int:
        """Wait for the child's own end, whose exit code says more than our kill would; kill it if it does not come."""
        try:
            async with asyncio.timeout(0.0 if self._hung else EXIT_S):
                return await process.wait()
        except TimeoutError:
            self._hung = True
            process.kill()
            return await process.wait()

    async def _spawn(self, theirs: socket.socket) -> asyncio.subprocess.Process:
        device, engine = self._device_wanted, self._engine
        if self._left and self.device is not None:
            # What comes next is most likely for the same engine, and the device is known: nothing else is imported.
            device, engine = self.device.kind, EngineName.SDCPP
        offline = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}
        kept = {} if self._compiled_path is None else {"TORCHINDUCTOR_CACHE_DIR": str(self._compiled_path)}
        try:
            return await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "node.worker",
                *("--socket", str(theirs.fileno())),
                *("--parent", str(os.getpid())),
                *("--device", device),
                *("--engine", engine.value),
                *("--threads", str(self._threads)),
                *("--tuning", self._tuning.model_dump_json()),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=os.environ | offline | kept | {"OMP_NUM_THREADS": str(self._threads)},
            )
        finally:
            theirs.close()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        """Take the child's messages until it ends, breaks the protocol, or falls silent."""
        patience_s = self.patience.start_s
        try:
            while not self._stalled():
                # Not wait_for: in Python 3.11 it swallows a cancel that comes together with a frame.
                async with asyncio.timeout(patience_s):
                    frame = await read_frame_from(reader)
                patience_s = self.patience.silence_s
                self._take(frame)
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        except (TimeoutError, FrameError) as error:
            log.error("worker_hung", reason=type(error).__name__)
        self._hung = True

    def _stalled(self) -> bool:
        # The child does one call after another: only the oldest can be at work.
        oldest = next(iter(self._calls.values()), None)
        return oldest is not None and time.monotonic() - oldest.last_sign > self.patience.stall_s

    def _take(self, frame: Frame) -> None:
        header = frame.header
        kind = header["kind"]
        if kind in ("hello", "alive"):
            self.device = DeviceStatus.model_validate(header["device"])
            self.memory = Memory(**header["memory"])
            self.tuning = header["tuning"]
            if kind == "hello":
                self.first_memory = self.memory
                log.info("worker_ready", pid=header["pid"], device=self.device.name)
                self._send_again()
                self._ready.set()
            return
        call = self._calls.get(header["call"])
        if call is None:
            return
        call.last_sign = time.monotonic()
        if kind == "began":
            if call.run is not None and call.run.on_begin is not None:
                call.run.on_begin()
            return
        if kind == "step":
            if call.run is not None and call.run.on_step is not None:
                call.run.on_step(header["step"], header["steps"])
            return
        if kind == "preview":
            if call.run is not None and call.run.on_preview is not None:
                call.run.on_preview(header["index"], frame.blobs[0])
            return
        # The next in the child's queue begins now, not when it was sent.
        del self._calls[header["call"]]
        for waiting in self._calls.values():
            waiting.last_sign = call.last_sign
        self._deaths_in_a_row = 0
        if header.get("leaving", False):
            # Before anyone hears of the end of this run: the next must not be given to a child that is about to end.
            self._left = True
            self._ready.clear()
            self._on_lost()
        if not call.answered.done():
            call.answered.set_result(frame)

    def _send_again(self) -> None:
        """Give a new child what the last one left undone. After a death there is nothing: those calls have failed."""
        for number, call in list(self._calls.items()):
            call.last_sign = time.monotonic()
            if not call.cancelled:
                self._send(call.order, call.blobs)
            elif not self._calls.pop(number).answered.done():
                call.answered.set_exception(RunCancelled("The run was cancelled before it began."))
