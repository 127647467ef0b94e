"""Processes under measurement: started on one core, their CPU time and memory read from /proc, ended in good order."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

STOP_WITHIN_S = 10.0
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_MISSED_S = 0.03
"""Exact times miss threads that ended meanwhile; beyond this much the coarse time, which counts them, is taken."""


def cores() -> tuple[int | None, int | None]:
    """(core of what is measured, core of nodes and load); None where the machine cannot keep them apart."""
    mine = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return (mine[0], mine[1]) if len(mine) > 1 else (None, None)


@contextmanager
def process(
    arguments: list[str], *, core: int | None, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process on `core`, its output in `log`; it is ended with the block."""

    def pin() -> None:
        if core is not None:
            os.sched_setaffinity(0, {core})

    with ExitStack() as stack:
        out = stack.enter_context(log.open("wb"))
        started = subprocess.Popen(
            arguments,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={**os.environ, **(environment or {})},
            preexec_fn=pin,  # Before any thread is started, so that all of them are on the core.
        )
        try:
            yield started
        finally:
            started.terminate()
            try:
                started.wait(STOP_WITHIN_S)
            except subprocess.TimeoutExpired:
                started.kill()
                started.wait()


def tree(pid: int) -> list[int]:
    """The process and all that descend from it."""
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        for children in Path(f"/proc/{found[-1]}/task").glob("*/children"):
            with suppress(OSError):
                todo += map(int, children.read_text().split())
    return found


class CpuClock:
    """CPU seconds that a tree of processes takes from the clock's making on."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._exact_s, self._coarse_s = _cpu_s(pid)

    def seconds(self) -> float:
        """Until now."""
        exact_s, coarse_s = _cpu_s(self._pid)
        exact_s, coarse_s = exact_s - self._exact_s, coarse_s - self._coarse_s
        return coarse_s if exact_s < coarse_s - _MISSED_S else exact_s


def _cpu_s(pid: int) -> tuple[float, float]:
    """(in nanoseconds' exactness, of threads alive now; in clock ticks, of all that ever were)"""
    exact_ns = ticks = 0
    for each in tree(pid):
        with suppress(OSError):
            ticks += sum(map(int, Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()[11:13]))
        for times in Path(f"/proc/{each}/task").glob("*/schedstat"):
            with suppress(OSError):
                exact_ns += int(times.read_text().split()[0])
    return exact_ns / 1e9, ticks * _TICK_S


def memory_bytes(pid: int, *, peak: bool = False) -> int:
    """Resident memory of the tree now, or its peak since `forget_peak`."""
    name, total = "VmHWM" if peak else "VmRSS", 0
    for each in tree(pid):
        with suppress(OSError):
            lines = Path(f"/proc/{each}/status").read_text().splitlines()
            total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith(name))
    return total


def forget_peak(pid: int) -> None:
    """Begin to measure the peak anew (proc(5), clear_refs 5)."""
    for each in tree(pid):
        with suppress(OSError):
            Path(f"/proc/{each}/clear_refs").write_text("5")
