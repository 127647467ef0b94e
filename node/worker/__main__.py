"""The child process: `python -m node.worker --socket FD --parent PID --device KIND --engine NAME --threads N
--tuning JSON`.

The main thread runs the engine. One thread reads orders, so that a cancel arrives during a run and the closing of the
socket ends the process at once; one says every two seconds that the process lives and how much memory is free.
A run that its engine cannot stop is cancelled by the end of this process, which says so first: the node starts another.
"""

import argparse
import ctypes
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from PIL import Image

from common.pictures import encode
from node.engine_names import EngineName
from node.engines.base import (
    ControlMismatch,
    LoraMismatch,
    Made,
    Member,
    OnPreview,
    OnStep,
    OutOfDeviceMemory,
    RunCancelled,
    RunSpec,
)
from node.masks import Canvas
from node.safetensors_header import CheckpointRefused
from node.tuning import USUAL, Tuning
from node.worker.company import Company, Orders, calls_of
from node.worker.device import choose_device, device_status, memory_held
from node.worker.engines import Engines
from node.worker.frames import FrameError, pack, read_frame
from node.worker.orders import ALIVE_EVERY_S, canvas_from_blobs, load_from_json, with_control_pictures
from node.worker.parameters import parameters_text, recipe_json

_PR_SET_PDEATHSIG = 1
"""prctl option of Linux: the signal to get when the parent dies."""


_REASONS: dict[type[Exception], str] = {
    RunCancelled: "cancelled",
    OutOfDeviceMemory: "out_of_memory",
    LoraMismatch: "lora_mismatch",
    ControlMismatch: "control_mismatch",
}


class Child:
    """The worker's side of the socket."""

    def __init__(self, connection: socket.socket, engines: Engines, device: str) -> None:
        self._connection = connection
        self._engines = engines
        self._device = device
        self._send_lock = threading.Lock()
        self._orders = Orders()
        self._cancelled: set[int] = set()
        self._unstoppable: int | None = None
        """The call at work, where its engine goes on whatever happens."""
        self._ending = threading.Lock()
        """Held by whoever tells how such a call ended: its end and its cancel may come together."""
        self._delivering = ThreadPoolExecutor(1, "deliver")
        """Encodes and sends what is made: the next step, or the next run, need not wait for a file."""

    def run(self) -> None:
        """Serve until the node closes its end."""
        for work in (self._read, self._say_alive):
            threading.Thread(target=work, daemon=True).start()
        self._send({"kind": "hello", "pid": os.getpid(), **self._state()})
        while True:
            # Nothing is at work, and who waits is cancelled where it waits: these came too late for theirs.
            self._cancelled.clear()
            order = self._orders.get()
            try:
                self._carry_out(order.header, order.blobs)
            except Exception as error:
                for call in calls_of(order.header):
                    self._fail(call, error)

    def _carry_out(self, order: dict[str, Any], blobs: Sequence[bytes]) -> None:
        if order["kind"] == "together" and order["share"] is not None:
            self._generate_in_steps(order)
            return
        if order["kind"] == "together":
            self._generate_together(order["members"], order["batch"])
            return
        call, kind = order["call"], order["kind"]
        if kind == "load":
            self._engines.load(load_from_json(order))
            self._send({"kind": "done", "call": call})
        elif kind == "unload":
            self._engines.unload(order["model"])
            self._send({"kind": "done", "call": call})
        elif kind == "drop_loras":
            self._engines.drop_loras(order["model"], order["loras"])
            self._send({"kind": "done", "call": call})
        elif kind == "measure":
            self._engines.free_caches()
            self._send({"kind": "done", "call": call, "memory": memory_held(self._device)._asdict()})
        else:
            spec, blobs = with_control_pictures(RunSpec.from_json(order["spec"]), blobs)
            self._generate(call, spec, canvas_from_blobs(order["canvas"], blobs, spec.size))

    def _generate(self, call: int, spec: RunSpec, canvas: Canvas | None) -> None:
        self._unstoppable = None if self._engines.interruptible(spec.model) else call
        try:
            self._begin(call)
            made = self._engines.generate(spec, canvas, self._steps_of(call), self._previews_of(call, spec))
        finally:
            with self._ending:
                self._unstoppable = None
        self._deliver_beside(call, spec, made)

    def _begin(self, call: int) -> None:
        """Tell that the device turns to a run. Raises: RunCancelled: nobody wants it any more."""
        if call in self._cancelled:
            raise RunCancelled("The run was cancelled before it began.")
        self._send({"kind": "began", "call": call})

    def _generate_together(self, orders: Sequence[dict[str, Any]], batch: int) -> None:
        """Make several runs in common passes. Each is answered by itself; one that is cancelled as soon as it is."""
        left: dict[int, RunSpec] = {}
        members = []
        for order in orders:
            call, spec = order["call"], RunSpec.from_json(order["spec"])
            member = self._member_of(call, spec)
            if member is not None:
                left[call] = spec
                members.append(member)
        outcomes: Sequence[Made | Exception]
        try:
            outcomes = self._engines.generate_together(members, batch) if members else ()
        except Exception as error:
            outcomes = [error] * len(members)
        for (call, spec), outcome in zip(left.items(), outcomes, strict=True):
            if isinstance(outcome, Made):
                self._deliver_beside(call, spec, outcome)
            elif not isinstance(outcome, RunCancelled):
                self._fail(call, outcome)

    def _generate_in_steps(self, order: dict[str, Any]) -> None:
        """Make several runs, and those of the same share that come meanwhile. Each is answered when it is made."""
        company = Company(
            order,
            self._orders,
            member_of=self._member_of,
            deliver=self._deliver_beside,
            fail=self._fail,
        )
        try:
            self._engines.generate_in_steps(RunSpec.from_json(order["members"][0]["spec"]), company)
        except Exception as error:
            company.fail_all(error)

    def _member_of(self, call: int, spec: RunSpec) -> Member | None:
        """One of several; None for one that is cancelled already, and is told so now."""
        try:
            self._begin(call)
        except RunCancelled as error:
            self._fail(call, error)
            return None
        return Member(spec, self._steps_of(call, tell_end=True), self._previews_of(call, spec))

    def _steps_of(self, call: int, *, tell_end: bool = False) -> OnStep:
        """tell_end: answer a cancelled run at once, for the others of its pass go on."""

        def on_step(step: int, steps: int) -> None:
            if call in self._cancelled:
                cancelled = RunCancelled("The run was cancelled.")
                if tell_end:
                    self._fail(call, cancelled)
                raise cancelled
            self._send({"kind": "step", "call": call, "step": step, "steps": steps})

        return on_step

    def _previews_of(self, call: int, spec: RunSpec) -> OnPreview:
        def on_preview(index: int, image: Image.Image) -> None:
            file = encode(image, output_format=spec.output_format, compression=spec.output_compression)
            self._send({"kind": "preview", "call": call, "index": index}, [file])

        return on_preview

    def _deliver_beside(self, call: int, spec: RunSpec, made: Made) -> None:
        self._delivering.submit(self._deliver_or_fail, call, spec, made)

    def _deliver_or_fail(self, call: int, spec: RunSpec, made: Made) -> None:
        try:
            self._deliver(call, spec, made)
        except Exception as error:
            self._fail(call, error)

    def _deliver(self, call: int, spec: RunSpec, made: Made) -> None:
        """Answer a run with its files."""
        began = time.perf_counter()
        files = [
            encode(
                image,
                output_format=spec.output_format,
                compression=spec.output_compression,
                parameters=parameters_text(spec, seed) if spec.embed_parameters else None,
                recipe=recipe_json(spec, seed, made.batch) if spec.embed_parameters else None,
            )
            for image, seed in zip(made.images, spec.seeds, strict=True)
        ]
        header = {
            "kind": "done",
            "call": call,
            "timings_s": made.timings_s | {"write": time.perf_counter() - began},
            "prompt_tokens": made.prompt_tokens,
            "prompt_truncated": made.prompt_truncated,
            "sampler": made.sampler,
            "lora_layers": made.lora_layers,
            "vae_tiled": made.vae_tiled,
            "batch": made.batch,
            "passes": [list(each) for each in made.passes],
            "own_s": made.own_s,
        }
        self._send(header, files)

    def _read(self) -> None:
        try:
            while True:
                frame = read_frame(self._read_exactly)
                if frame.header["kind"] == "cancel":
                    self._cancel(frame.header["call"])
                else:
                    self._orders.put(frame)
        except (EOFError, OSError, FrameError):
            # Not sys.exit: the main thread may be inside a kernel that would go on for minutes.
            os._exit(0)

    def _cancel(self, call: int) -> None:
        if self._orders.drop(call):
            self._fail(call, RunCancelled("The run was cancelled before it began."))
            return
        self._cancelled.add(call)
        with self._ending:
            if call == self._unstoppable:
                self._send({**_failed(call, "cancelled", "The run was cancelled."), "leaving": True})
                os._exit(0)

    def _read_exactly(self, size_bytes: int) -> bytes:
        parts = bytearray()
        while len(parts) < size_bytes:
            part = self._connection.recv(size_bytes - len(parts))
            if not part:
                raise EOFError
            parts += part
        return bytes(parts)

    def _say_alive(self) -> None:
        while True:
            time.sleep(ALIVE_EVERY_S)
            self._send({"kind": "alive", **self._state()})

    def _state(self) -> dict[str, Any]:
        memory = memory_held(self._device)._asdict()
        return {"device": device_status(self._device).model_dump(), "memory": memory, "tuning": self._engines.told()}

    def _fail(self, call: int, error: Exception) -> None:
        reason, message = told(error)
        self._send(_failed(call, reason, message))
        if reason == "engine_failed":
            _print_cause(error)

    def _send(self, header: dict[str, Any], blobs: list[bytes] | None = None) -> None:
        frame = pack(header, blobs or ())
        with self._send_lock:
            self._connection.sendall(frame)


def _failed(call: int, reason: str, message: str) -> dict[str, Any]:
    return {"kind": "failed", "call": call, "reason": reason, "message": message}


def told(error: Exception) -> tuple[str, str]:
    """An error's reason, as the node knows it, and its message.

    Engines tell their own errors; anything else names only its type, for texts can hold prompts.
    """
    if isinstance(error, CheckpointRefused):
        return "refused", str(error)
    message = getattr(error, "message", None) or f"{type(error).__name__}."
    return next((reason for kind, reason in _REASONS.items() if isinstance(error, kind)), "engine_failed"), message


def _print_cause(error: Exception) -> None:
    """The library's own error and place, for the node's log; never its text, which may hold the prompt."""
    cause = error.__cause__ or error
    place = cause.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place is not None else "unknown"
    print(f"{type(cause).__module__}.{type(cause).__qualname__} at {where}", file=sys.stderr, flush=True)


def _die_with_parent(parent_pid: int) -> None:
    """Linux kills this process with its parent, even where a native call holds the interpreter."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(0)


def main() -> None:
    """Read the command line, own the device, serve."""
    parser = argparse.ArgumentParser(prog="python -m node.worker")
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--engine", type=EngineName, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--tuning", type=Tuning.model_validate_json, default=USUAL)
    given = parser.parse_args()
    _die_with_parent(given.parent)
    # Ctrl-C in a terminal and a service manager reach the whole group; the node ends its worker itself, after the runs
    # in flight.
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.SIG_IGN)
    try:
        _serve(socket.socket(fileno=given.socket), given.device, given.engine, given.threads, given.tuning)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        # Not sys.exit: tearing down torch takes seconds, and the node waits for the exit code.
        os._exit(1)


def _serve(connection: socket.socket, device_wanted: str, engine: EngineName, threads: int, tuning: Tuning) -> None:
    """engine: the one to have ready before the first order."""
    device = choose_device(device_wanted, engine)
    engines = Engines(device, threads, tuning)
    engines.ready(engine)
    Child(connection, engines, device).run()


if __name__ == "__main__":
    main()
