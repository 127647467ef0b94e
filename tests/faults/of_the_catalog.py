"""A catalog, or a store, that is gone, hangs, is locked or full."""

import asyncio
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from tests.faults.campaign import Fault, Scene
from tests.faults.estate import ROUTERS, until

HANGS_S = 7.0
"""Longer than anyone waits for the database."""
LOCKED_S = 12.0
"""Longer than SQLite waits for a lock."""
HEALTHY_WITHIN_S = 1.0
FILLER = "filler"


async def killed(scene: Scene) -> None:
    """F14: PostgreSQL SIGKILL, all of it; started again as soon as requests are refused."""
    scene.estate.database.kill()
    await _refused(scene)
    await asyncio.to_thread(scene.estate.database.start)
    scene.over()


async def hangs(scene: Scene) -> None:
    """F15: PostgreSQL SIGSTOP, then SIGCONT. No router may hang with it."""
    processes = scene.estate.database.processes()
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        async with _alive(scene):
            await asyncio.sleep(HANGS_S * scene.longer)
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)
    scene.over()


async def locked(scene: Scene) -> None:
    """F17: another process holds SQLite's lock for writing."""
    lock = sqlite3.connect(scene.estate.home / "catalog.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    try:
        async with _alive(scene):
            await asyncio.sleep(LOCKED_S * scene.longer)
    finally:
        lock.rollback()
        lock.close()
    scene.over()


async def full(scene: Scene) -> None:
    """F18: no space left where pictures are stored, until it is made."""
    store = scene.estate.home / "assets"
    if not store.is_mount():
        pytest.skip("no file system can be mounted here that could be filled")
    filler = store / FILLER
    with filler.open("wb", buffering=0) as file:  # Or what is kept back fails once more when it is closed.
        try:
            while True:
                file.write(b"\0" * 65536)
        except OSError:
            pass
    await _refused(scene)
    filler.unlink()
    scene.over()


async def _refused(scene: Scene) -> None:
    began_s = scene.struck_s
    await until(
        lambda: any(each.outcome == "refused" and (each.ended_s or 0) > began_s for each in scene.load.asked),
        what="the first refusal",
    )


@asynccontextmanager
async def _alive(scene: Scene) -> AsyncIterator[None]:
    """Every router says within a second that it lives, all the while."""

    async def look(router: int) -> None:
        async with httpx.AsyncClient(trust_env=False) as client:
            while True:
                try:
                    await client.get(f"{scene.estate.router_url(router)}/health", timeout=HEALTHY_WITHIN_S * scene.slow)
                except httpx.HTTPError as error:
                    scene.found.hold("I7", f"/health of router {router}: {type(error).__name__}")
                await asyncio.sleep(0.1)

    looks = [asyncio.create_task(look(router)) for router in range(ROUTERS)]
    try:
        yield
    finally:
        for each in looks:
            each.cancel()
        await asyncio.gather(*looks, return_exceptions=True)


FAULTS = [
    Fault(
        code="F14",
        title="PostgreSQL SIGKILL",
        strike=killed,
        may_refuse=True,
        recovers_within_s=5,
        kinds=("postgres",),
        possible=("postgres",),
    ),
    Fault(
        code="F15",
        title="PostgreSQL SIGSTOP",
        strike=hangs,
        may_refuse=True,
        recovers_within_s=5,
        kinds=("postgres",),
        possible=("postgres",),
    ),
    Fault(
        code="F17",
        title="SQLite locked",
        strike=locked,
        may_refuse=True,
        recovers_within_s=5,
        kinds=("sqlite",),
        possible=("sqlite",),
    ),
    Fault(code="F18", title="store full", strike=full, may_refuse=True, recovers_within_s=5, kinds=("sqlite",)),
]
