"""Clocks that are wrong, and are set while work is under way.

libfaketime gives a process a wall clock of its own, and leaves the monotonic one alone: Debian's `faketime`. On SQLite all
processes share their machine's clock, so this is tried where they may be on several: with PostgreSQL.
"""

import asyncio
from pathlib import Path

import pytest

from tests.faults.campaign import Fault, Scene
from tests.faults.estate import ROUTERS, Estate, until

LIBRARIES = Path("/usr/lib")
HOUR_S = 3600
SETTINGS_S = (HOUR_S, -HOUR_S, 2 * HOUR_S)
"""How far the clocks are off, one after another."""
GOOD = 24
"""Answers with each of them."""


async def jumping(scene: Scene) -> None:
    """F25: a router's and a node's clock are an hour ahead when they start, are then set two hours back, then three ahead."""
    estate, clock = scene.estate, scene.estate.home / "clock"
    wrong = {
        "LD_PRELOAD": str(_faketime()),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        # Else it would read the file at each look at any clock.
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",
    }
    for number, ahead_s in enumerate(SETTINGS_S):
        clock.with_name("next").write_text(f"{ahead_s:+d}")
        clock.with_name("next").replace(clock)
        if number == 0:
            await _replaced(estate, wrong)
        await scene.load.good(round(GOOD * scene.longer))
    await _replaced(estate, {})
    scene.over()


async def _replaced(estate: Estate, more: dict[str, str]) -> None:
    """Have the first router and the first node stop in good order and start anew, with these variables."""
    await asyncio.to_thread(estate.routers[0].end)
    estate.start_router(0, **more)
    await until(lambda: estate.answers(f"{estate.router_url(0)}/ready", 200), what="the router")
    node = estate.nodes["a"]
    node.terminate()
    await asyncio.to_thread(node.wait)
    estate.start_node("a", **more)
    await estate.node_well("a")
    for index in range(ROUTERS):
        await until(lambda index=index: estate.sees_all(index), what=f"router {index} to see the node")


def _faketime() -> Path:
    found = next(LIBRARIES.rglob("libfaketime.so.1"), None)
    if found is None:
        pytest.fail("libfaketime is not installed: apt-get install faketime")
    return found


FAULTS = [Fault(code="F25", title="clocks an hour off, and set", strike=jumping, kinds=("postgres",), possible=("postgres",))]
