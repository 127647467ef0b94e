"""Why a worker ended, or a call of it failed, in words an operator can act on."""

import signal
from typing import Any

from common.errors import AquatintError, NodeFailed
from node.engines.base import ControlMismatch, EngineFailed, LoraMismatch, OutOfDeviceMemory, RunCancelled


class WorkerLost(NodeFailed):
    """The worker ended under a run. Another node, or this one with a new worker, may well succeed."""

    code = "worker_lost"


def lost(returncode: int, *, hung: bool = False) -> WorkerLost:
    """The error of every call a dead worker leaves behind.

    returncode: as asyncio gives it, negative for a signal; 128 + signal where a shell or container stood between.
    hung: this node killed it because it had stopped answering.
    """
    number = -returncode if returncode < 0 else returncode - 128 if returncode > 128 else 0
    if hung:
        return WorkerLost("The worker process stopped answering and was killed.", code="worker_hung")
    if number == signal.SIGKILL:
        return WorkerLost(
            f"The worker process was killed from outside (exit {returncode}), most likely by the system "
            "because main memory ran out; the device's own memory would have been reported as such.",
            code="insufficient_memory",
        )
    if number:
        names = {signal.SIGABRT: "aborted in native code", signal.SIGSEGV: "crashed in native code (bad memory access)"}
        known = names.get(signal.Signals(number)) if number in set(signal.Signals) else None
        return WorkerLost(f"The worker process {known or f'was ended by signal {number}'} (exit {returncode}).")
    return WorkerLost(f"The worker process ended by itself (exit {returncode}).")


def failure_of(header: dict[str, Any]) -> AquatintError:
    """The error that a worker's `failed` tells."""
    message = header["message"]
    if header["reason"] == "cancelled":
        return RunCancelled(message)
    if header["reason"] == "out_of_memory":
        return OutOfDeviceMemory(message)
    if header["reason"] == "lora_mismatch":
        return LoraMismatch(message)
    if header["reason"] == "control_mismatch":
        return ControlMismatch(message)
    return EngineFailed(message, code="checkpoint_refused" if header["reason"] == "refused" else None)
