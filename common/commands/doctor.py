"""`aquatint doctor`: is this machine fit to run what is installed on it?"""

import asyncio
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import typer

from common.commands.output import JsonOption, show

LOW_DISK_BYTES = 2 * 1024**3


@dataclass(frozen=True, slots=True)
class Finding:
    """One look: what was looked at, whether it is well ("ok", "warning", "error"), and what to do if not."""

    check: str
    verdict: str
    found: str
    advice: str | None = None


def doctor(as_json: JsonOption = False) -> None:
    """Check settings, disk, catalog, asset store and device. Exit code 1 if anything is an error."""
    findings = [finding for check in (_settings, _disk, _catalog, _assets, _engines, _device) for finding in check()]
    columns = {"check": "check", "verdict": "verdict", "found": "found", "advice": "advice"}
    show([asdict(finding) for finding in findings], columns, as_json=as_json, empty="")
    if any(finding.verdict == "error" for finding in findings):
        raise typer.Exit(1)


def _settings() -> Iterator[Finding]:
    from common.settings import CommonSettings

    yield Finding("settings", "ok", f"home is {CommonSettings.load().home}")


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
