"""Routers that die, sleep, stop and are replaced, and two that are asked for the same at once."""

import asyncio
import signal

from common.catalog import RunStatus
from tests.faults.campaign import Fault, Scene
from tests.faults.checks import all_runs
from tests.faults.estate import NODES, ROUTERS, WORK_S, until
from tests.faults.load import Asked

SAME_KEYS = 200
KEYS_AT_ONCE = 20
SAME_REQUESTS = 40
"""Under one key; five times as many in the long form."""
ASLEEP_S = 17.0
"""Longer than a run may be without a sign of life."""
STOPPED_WITHIN_S = 60.0
"""For a node that is told to stop: twice the time that its runs get."""
STOPS_AT_ONCE_S = 8.0
"""For a second SIGTERM, on a machine that is busy."""


async def killed(scene: Scene) -> None:
    """F21: SIGKILL with runs in flight, and a new one in its place."""
    estate = scene.estate
    estate.routers[0].kill()
    estate.start_router(0)
    await until(lambda: estate.answers(f"{estate.router_url(0)}/ready", 200), what="the new router")
    scene.over()


async def asked_twice(scene: Scene) -> None:
    """F22: keys at both routers in the same moment, some of them at once; and one key with many requests."""
    name, load = f"{scene.load.name} same ", scene.load
    for first in range(0, SAME_KEYS, KEYS_AT_ONCE):
        tasks = []
        for number in range(first, first + KEYS_AT_ONCE):
            key, seed = f"{load.name}-same-{number}", scene.rng.randrange(2**31)
            tasks += [load.send(Asked(f"{name}{number}", seed, 1, router, key=key)) for router in range(ROUTERS)]
        await asyncio.gather(*tasks)
    await _made_once(scene, name, SAME_KEYS)
    name, seed = f"{load.name} one ", scene.rng.randrange(2**31)
    count = SAME_REQUESTS * (5 if scene.longer > 1 else 1)
    same = [Asked(f"{name}key", seed, 1, number % ROUTERS, key=f"{load.name}-one") for number in range(count)]
    await asyncio.gather(*map(load.send, same))
    await _made_once(scene, name, 1)


async def _made_once(scene: Scene, name: str, keys: int) -> None:
    runs = [run for run in await all_runs(scene.estate, name) if run.status is RunStatus.SUCCEEDED]
    ids = {run.id for run in runs}
    stored = [event for event in scene.estate.events() if event["event"] == "stored" and event["run_id"] in ids]
    same = (len(runs), len(stored)) == (keys, keys)
    scene.found.hold("I5", *([] if same else [f"{len(runs)} runs and {len(stored)} generations for {keys} keys"]))


async def asleep(scene: Scene) -> None:
    """F23: SIGSTOP until its runs count as lost, then SIGCONT: it must not believe that they are its own still."""
    router = scene.estate.routers[0]
    router.popen.send_signal(signal.SIGSTOP)
    await asyncio.sleep(ASLEEP_S * scene.longer)
    router.popen.send_signal(signal.SIGCONT)
    scene.over()


async def replaced(scene: Scene) -> None:
    """F27: every router and every node is told to stop and started anew, one after another; in the long form twice."""
    estate = scene.estate
    for _ in range(2 if scene.longer > 1 else 1):
        for index in range(ROUTERS):
            code = await asyncio.to_thread(estate.routers[index].end)
            scene.found.hold("I9", *([f"router {index} ended with {code}"] if code else []))
            estate.start_router(index)
            await until(lambda index=index: estate.answers(f"{estate.router_url(index)}/ready", 200), what=f"router {index}")
        for name in NODES:
            estate.nodes[name].terminate()
            code = await asyncio.to_thread(estate.nodes[name].wait, STOPPED_WITHIN_S)
            scene.found.hold("I9", *([f"node {name} ended with {code}"] if code else []))
            estate.start_node(name)
            await estate.node_well(name)
            for index in range(ROUTERS):
                await until(lambda index=index: estate.sees_all(index), what=f"router {index} to see node {name}")
    scene.over()


async def told_twice(scene: Scene) -> None:
    """F28: SIGTERM with long runs in flight, and again: it is gone at once, and the runs say why."""
    estate = scene.estate
    await scene.load.pause()
    for name in NODES:
        await estate.tell_node(name, seconds=120.0)
    running = [scene.load.send(Asked(f"{scene.load.name} long {number}", number, 1, 0)) for number in range(2)]
    held = f"{scene.load.name} long "

    async def begun() -> bool:
        return [run.status for run in await all_runs(estate, held)] == [RunStatus.RUNNING] * 2

    await until(begun, what="the long runs to begin")
    router = estate.routers[0]
    router.popen.send_signal(signal.SIGTERM)
    await until(lambda: _refuses(scene), what="the router to accept no more")
    router.popen.send_signal(signal.SIGTERM)
    took_s = await until(lambda: router.popen.poll() is not None, what="the router to be gone")
    wrong = (
        []
        if took_s < STOPS_AT_ONCE_S * scene.slow and router.popen.returncode == 0
        else [f"{took_s:.1f} s, {router.popen.returncode}"]
    )
    await asyncio.gather(*running)
    codes = {run.error_code for run in await all_runs(estate, held)}
    scene.found.hold("I9", *wrong, *([] if codes == {"interrupted"} else [f"interrupted runs say {codes}"]))
    for name in NODES:
        await estate.tell_node(name, seconds=WORK_S)
    estate.start_router(0)
    await until(lambda: estate.answers(f"{estate.router_url(0)}/ready", 200), what="the new router")
    scene.load.resume()
    scene.over()


async def _refuses(scene: Scene) -> bool:
    return not await scene.estate.answers(f"{scene.estate.router_url(0)}/health", 200)


FAULTS = [
    Fault(code="F21", title="router SIGKILL", strike=killed, may_fail=True, kinds=("postgres",)),
    Fault(code="F22", title="same keys at two routers", strike=asked_twice),
    Fault(
        code="F23",
        title="router SIGSTOP",
        strike=asleep,
        may_refuse=True,
        recovers_within_s=5,
        kinds=("postgres",),
        possible=("postgres",),
    ),
    Fault(code="F27", title="rolling restart", strike=replaced, kinds=("real",), possible=("sqlite", "postgres", "real")),
    Fault(code="F28", title="SIGTERM twice", strike=told_twice, may_refuse=True, kinds=("sqlite",)),
]
