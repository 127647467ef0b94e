"""What the device is and how much memory it has. Used inside the worker only: it asks the engines' libraries."""

import os
import sys
from pathlib import Path

from common.node_api import DeviceStatus
from node.engine_names import EngineName
from node.worker.orders import Memory

_CGROUP = Path("/sys/fs/cgroup")


def choose_device(wanted: str, engine: EngineName) -> str:
    """`auto` as cuda, mps or cpu, in that order, as the engine sees them; anything else as it is.

    Raises: RuntimeError: a device that is not there was asked for by name.
    """
    if wanted == "cpu":
        # No library needs to be asked, nor waited for.
        return wanted
    if wanted not in ("auto", "cuda", "mps"):
        raise RuntimeError(f"there is no device {wanted!r}")
    available = _available(engine)
    if wanted == "auto":
        return next(kind for kind, there in available.items() if there)
    if not available.get(wanted, False):
        raise RuntimeError(f"device {wanted!r} is not available here")
    return wanted


def _available(engine: EngineName) -> dict[str, bool]:
    if engine is EngineName.SDCPP:
        from node.engines.sdcpp_device import first_gpu

        gpu = first_gpu()
        return {kind: gpu is not None and gpu.kind == kind for kind in ("cuda", "mps")} | {"cpu": True}
    import torch

    return {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}


def device_status(kind: str) -> DeviceStatus:
    """Name and memory of the device; for a CPU, the machine's or the container's memory, whichever is less.

    torch is asked where it is loaded already; else what sd.cpp was built with, for that is then what runs.
    """
    if kind == "cpu":
        total_bytes, free_bytes = _system_memory_bytes()
        name = f"CPU, {os.cpu_count()} cores"
    elif "torch" not in sys.modules:
        from node.engines.sdcpp_device import first_gpu

        gpu = first_gpu()
        if gpu is None:
            raise RuntimeError(f"the device {kind!r} is gone")
        name, total_bytes, free_bytes = gpu.name, gpu.total_bytes, gpu.free_bytes
    else:
        name, total_bytes, free_bytes = _torch_device(kind)
    return DeviceStatus(kind=kind, name=name, memory_total_bytes=total_bytes, memory_free_bytes=free_bytes)


def _torch_device(kind: str) -> tuple[str, int, int]:
    """Name, total and free bytes."""
    import torch

    if kind == "cuda":
        free_bytes, total_bytes = torch.cuda.mem_get_info()
        return torch.cuda.get_device_name(), total_bytes, free_bytes
    total_bytes = torch.mps.recommended_max_memory()
    return "Apple GPU", total_bytes, max(0, total_bytes - torch.mps.driver_allocated_memory())


def memory_held(kind: str) -> Memory:
    """What this process holds just now. torch is asked where it is loaded already."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        pages = 0
    device_bytes = sys.modules["torch"].cuda.memory_allocated() if kind == "cuda" and "torch" in sys.modules else 0
    return Memory(pages * os.sysconf("SC_PAGE_SIZE"), device_bytes)


def cores() -> int:
    """Those that this process may keep busy: of the machine, or those it is bound to, or what its container is allowed."""
    bound = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    allowed, _, period = (_cgroup_text("cpu.max") or "max").partition(" ")
    return bound if allowed == "max" else max(1, min(bound, int(allowed) // int(period)))


def _system_memory_bytes() -> tuple[int, int]:
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    total_bytes = page_bytes * os.sysconf("SC_PHYS_PAGES")
    free_bytes = _meminfo_bytes("MemAvailable") or total_bytes // 2
    limit, used = _cgroup_bytes("memory.max"), _cgroup_bytes("memory.current")
    if limit is not None and used is not None and limit < total_bytes:
        return limit, min(free_bytes, max(0, limit - used))
    return total_bytes, min(free_bytes, total_bytes)


def _meminfo_bytes(name: str) -> int | None:
    """A line of /proc/meminfo; None where there is no such file (macOS)."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), None)


def _cgroup_bytes(name: str) -> int | None:
    """A number of the container's own cgroup; None without one, or for "max"."""
    text = _cgroup_text(name)
    return int(text) if text.isdigit() else None


def _cgroup_text(name: str) -> str:
    """A file of the container's own cgroup (version 2); empty without one."""
    try:
        return (_CGROUP / name).read_text().strip()
    except OSError:
        return ""
