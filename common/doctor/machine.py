"""Looks at the machine: main memory, who was killed for it, the clock, the ports, and GPUs by way of NVIDIA's own tool."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from common.doctor import Finding
from common.doctor.deaths import RAM_ADVICE

LOW_MEMORY_BYTES = 2 * 1024**3
BUILT_S = 1_764_000_000
"""A moment before this version was made (November 2025): a clock that shows less has never been set."""
SKEW_S = 5.0
TOOL_TIMEOUT_S = 10


def memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> Iterator[Finding]:
    """Main memory that can be had, and processes that the kernel killed for it, here or in this container."""
    known = _numbers(proc / "meminfo")
    if "MemAvailable" in known:
        free_bytes = known["MemAvailable"] * 1024
        limit = _text(cgroup / "memory.max").strip()
        if limit.isdigit():
            free_bytes = min(free_bytes, int(limit) - int(_text(cgroup / "memory.current").strip() or 0))
        advice = "A checkpoint passes through main memory on its way to the device: stop something, or add memory."
        low = free_bytes < LOW_MEMORY_BYTES
        yield Finding("memory", "warning" if low else "ok", f"{free_bytes / 1e9:.1f} GB available", advice if low else None)
    killed = _numbers(cgroup / "memory.events").get("oom_kill", 0)
    if killed:
        yield Finding("memory", "error", f"the kernel killed {killed} process(es) of this container for memory", RAM_ADVICE)


def clock(now_s: float | None = None, others: dict[str, float] | None = None) -> Iterator[Finding]:
    """now_s: seconds since 1970, by default this machine's. others: the same moment by other clocks."""
    now_s = time.time() if now_s is None else now_s
    if now_s < BUILT_S:
        yield Finding("clock", "error", f"it is {time.strftime('%Y-%m-%d', time.gmtime(now_s))} here", "Set the clock: NTP.")
        return
    apart = {name: there_s - now_s for name, there_s in (others or {}).items() if abs(there_s - now_s) > SKEW_S}
    for name, seconds in apart.items():
        advice = "Signed links and leases go by the clock: let both machines follow NTP."
        yield Finding("clock", "warning", f"the clock of {name} is {seconds:+.0f} s from this one", advice)
    if not apart:
        yield Finding("clock", "ok", "agrees with " + ", ".join(others) if others else "has been set")


def port(process: str, host: str, number: int) -> tuple[Finding, float | None]:
    """Who listens where `process` would: itself, nobody, or something else. Second: the time there by its Date header."""
    import httpx

    called = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)
    check = f"port {number}"
    try:
        answer = httpx.get(f"http://{called}:{number}/health", timeout=3, trust_env=False)
        version = answer.json()["version"]
    except httpx.ConnectError:
        return Finding(check, "ok", f"free for a {process}"), None
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return Finding(check, "error", "something else listens there", f"Set AQUATINT__{process.upper()}__PORT."), None
    date = answer.headers.get("date")
    return Finding(check, "ok", f"a {process} answers, version {version}"), (
        parsedate_to_datetime(date).timestamp() if date else None
    )


def gpus() -> list[dict[str, Any]]:
    """GPUs as nvidia-smi tells of them: name, driver, used_mib, total_mib. Empty where it is missing or finds none."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.used,memory.total", "--format=csv,noheader,nounits"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False).stdout
    except subprocess.TimeoutExpired:
        return []
    rows = [[part.strip() for part in line.split(",")] for line in told.splitlines()]
    return [
        {"name": row[0], "driver": row[1], "used_mib": int(row[2]), "total_mib": int(row[3])}
        for row in rows
        if len(row) == 4 and row[2].isdigit() and row[3].isdigit()
    ]


def use_of_gpus(found: list[dict[str, Any]], node: dict[str, Any] | None) -> Iterator[Finding]:
    """Are the GPUs that are here used? node: `GET /node/v1/status` of the node on this machine, if one answers."""
    for gpu in found:
        memory_used = f"{gpu['used_mib']} of {gpu['total_mib']} MiB used"
        yield Finding("GPU", "ok", f"{gpu['name']}, driver {gpu['driver']}, {memory_used}")
    if node is None or not found:
        return
    advice = "See that torch is a CUDA build that fits the driver, and that AQUATINT__NODE__DEVICE is auto or cuda."
    loaded = any(model["resident"] for model in node["models"])
    if node["device"]["kind"] != "cuda":
        yield Finding("GPU unused", "error", f"the node runs on {node['device']['kind']!r} beside a GPU", advice)
    elif loaded and all(gpu["used_mib"] < 200 for gpu in found):
        yield Finding("GPU unused", "error", "a model is loaded, and yet the GPU's memory is empty", advice)


def kernel_log() -> Iterator[Finding]:
    """What the kernel says of processes killed for memory; nothing where its log may not be read."""
    try:
        told = subprocess.run(["dmesg"], capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return
    killed = [line for line in told.stdout.splitlines() if "Out of memory: Killed process" in line]
    if killed:
        yield Finding(
            "kernel", "warning", f"killed for main memory, {len(killed)} times: {killed[-1].strip()[:160]}", RAM_ADVICE
        )


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _numbers(path: Path) -> dict[str, int]:
    """`name 12` and `name: 12 kB`, one a line."""
    rows = (line.replace(":", " ").split() for line in _text(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}
