"""`aquatint doctor`: is this machine fit to run what is installed on it, and why did something die?"""

import asyncio
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from common.commands.output import JsonOption, show
from common.doctor import Finding

LOW_DISK_BYTES = 2 * 1024**3


def doctor(
    as_json: JsonOption = False,
    exit_code: Annotated[int | None, typer.Option(help="Of a process that died, such as 137: say why.")] = None,
    log: Annotated[Path | None, typer.Option(help="Log of a process that died: say why.", exists=True, dir_okay=False)] = None,
) -> None:
    """Check settings, disk, memory, clock, ports, catalog, asset store, engines and GPUs; read how something died.

    Exit code 0: all is well, or there are warnings only; 1: something is an error; 2: asked wrongly.
    """
    findings = list(_deaths(exit_code, log)) + list(_settings())
    if not any(finding.verdict == "error" and finding.check == "settings" for finding in findings):
        looks = (_disk, _memory, _catalog, _assets, _ports_and_clock, _engines, _device, _gpus, _dtype)
        findings += [finding for look in looks for finding in look()]
    columns = {"check": "check", "verdict": "verdict", "found": "found", "advice": "advice"}
    show([asdict(finding) for finding in findings], columns, as_json=as_json, empty="")
    if any(finding.verdict == "error" for finding in findings):
        raise typer.Exit(1)


def _deaths(exit_code: int | None, log: Path | None) -> Iterator[Finding]:
    from common.doctor import deaths, machine

    if exit_code is not None:
        yield from deaths.of_exit_code(exit_code)
    if log is not None:
        yield from deaths.of_log(log.read_text(errors="replace"))
    if exit_code is not None or log is not None:
        yield from machine.kernel_log()


def _settings() -> Iterator[Finding]:
    from common.settings import CommonSettings, SettingsError

    try:
        for process in ("router", "node"):
            _tree(process)
        yield Finding("settings", "ok", f"home is {CommonSettings.load().home}")
    except SettingsError as error:
        for fault in str(error).splitlines():
            yield Finding("settings", "error", fault, "`aquatint config show` lists what can be set.")


def _tree(process: str) -> Any:
    """The settings of a router or node on this machine."""
    (entry,) = entry_points(group="aquatint.settings", name=process)
    return entry.load().load()


def _memory() -> Iterator[Finding]:
    from common.doctor import machine

    yield from machine.memory()


def _ports_and_clock() -> Iterator[Finding]:
    from common.doctor import machine

    others: dict[str, float] = {}
    for process in ("router", "node"):
        own = getattr(_tree(process), process)
        finding, there_s = machine.port(process, own.host, own.port)
        yield finding
        if there_s is not None:
            others[f"the {process}"] = there_s
    database_s = asyncio.run(_database_clock())
    if database_s is not None:
        others["the database"] = database_s
    yield from machine.clock(time.time(), others)


async def _database_clock() -> float | None:
    """PostgreSQL's time; None where the catalog is a file, or does not answer."""
    from sqlalchemy import text

    from common.catalog.database import UNREACHABLE, make_engine, parse_url
    from common.settings import CommonSettings

    url = parse_url(CommonSettings.load().catalog_url)
    if url.get_backend_name() == "sqlite":
        return None
    engine = make_engine(url)
    try:
        async with engine.connect() as connection:
            return float((await connection.execute(text("SELECT extract(epoch FROM clock_timestamp())"))).scalar_one())
    except UNREACHABLE:
        return None
    finally:
        await engine.dispose()


def _gpus() -> Iterator[Finding]:
    from common.doctor import machine

    found = machine.gpus()
    yield from machine.use_of_gpus(found, _status_of_the_node() if found else None)


def _status_of_the_node() -> dict[str, Any] | None:
    """What the node on this machine says of itself; None where none answers."""
    import httpx

    settings = _tree("node")
    own = settings.node
    kept = settings.token_path
    token = own.token or (kept.read_text().strip() if kept.exists() else "")
    called = "127.0.0.1" if own.host == "0.0.0.0" else own.host
    headers = {"authorization": f"Bearer {token}"}
    try:
        answer = httpx.get(f"http://{called}:{own.port}/node/v1/status", headers=headers, timeout=3, trust_env=False)
        status: dict[str, Any] = answer.raise_for_status().json()
    except (httpx.HTTPError, ValueError):
        return None
    return status


def _dtype() -> Iterator[Finding]:
    own = _tree("node").node
    if own.dtype == "float32" and own.device != "cpu" and (own.device == "cuda" or shutil.which("nvidia-smi")):
        advice = "Leave AQUATINT__NODE__DTYPE at auto: bfloat16 where the GPU has it, else float16."
        yield Finding("dtype", "warning", "float32 on a GPU: twice the memory, and slower", advice)


def _disk() -> Iterator[Finding]:
    from common.settings import CommonSettings

    home = CommonSettings.load().home
    there = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if free < LOW_DISK_BYTES:
        yield Finding("disk", "warning", f"{free / 1e9:.1f} GB free", "Pictures and checkpoints need room: set AQUATINT_HOME.")
    else:
        yield Finding("disk", "ok", f"{free / 1e9:.1f} GB free")


def _catalog() -> Iterator[Finding]:
    from common.catalog import Catalog
    from common.settings import CommonSettings

    settings = CommonSettings.load()
    if settings.database_url is None and not (settings.home / "catalog.db").exists():
        yield Finding("catalog", "ok", "not made yet; the first start makes it")
        return

    async def look() -> None:
        catalog = await Catalog.open(settings.catalog_url)
        await catalog.ping()
        await catalog.close()

    yield _tried("catalog", lambda: asyncio.run(look()), "answers, schema is current", "Run `aquatint db upgrade`.")


def _assets() -> Iterator[Finding]:
    from common.catalog import open_asset_store
    from common.settings import CommonSettings

    async def write_and_read() -> None:
        store = open_asset_store(CommonSettings.load().asset_store_url)
        name = await store.put(b"aquatint doctor")
        await store.get(name)
        await store.delete(name)
        await store.close()

    advice = "Check AQUATINT__ASSETS_URL and its permissions."
    yield _tried("asset store", lambda: asyncio.run(write_and_read()), "writes and reads back", advice)


def _tried(check: str, attempt: Callable[[], Any], good: str, advice: str) -> Finding:
    from common.errors import AquatintError

    try:
        attempt()
    except (AquatintError, OSError) as error:
        return Finding(check, "error", str(error), advice)
    return Finding(check, "ok", good)


def _engines() -> Iterator[Finding]:
    if find_spec("torch") and find_spec("diffusers"):
        yield Finding("engine diffusers", "ok", "installed")
    else:
        yield Finding(
            "engine diffusers", "ok", "not installed; a router needs none", "For a node: pip install 'aquatint[node]'."
        )
    if find_spec("stable_diffusion_cpp"):
        yield Finding("engine sdcpp", "ok", "installed")
    else:
        yield Finding("engine sdcpp", "ok", "not installed", "For GGUF files: pip install 'aquatint[sdcpp]'.")


def _device() -> Iterator[Finding]:
    if not find_spec("torch"):
        return
    import torch

    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        name = torch.cuda.get_device_name()
        yield Finding("device", "ok", f"{name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free")
    elif torch.backends.mps.is_available():
        yield Finding("device", "ok", "Apple GPU")
    elif shutil.which("nvidia-smi"):
        advice = f"Install a CUDA build of torch for Python {sys.version_info.major}.{sys.version_info.minor}."
        yield Finding("device", "error", "an NVIDIA driver is here, but torch does not see a GPU", advice)
    else:
        yield Finding("device", "ok", "CPU only")
