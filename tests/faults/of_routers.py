"""Routers that die, sleep, stop and are replaced, and two that are asked for the same at once."""

import asyncio
import signal

from common.catalog import RunStatus
from tests.faults.campaign import Fault, Scene
from tests.faults.checks import all_runs
from tests.faults.estate import NODES, ROUTERS, WORK_S, until
from tests.faults.load import Asked

SAME_KEYS = 20
ASLEEP_S = 17.0
"""Longer than a run may be without a sign of life."""
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
    """F22: the same keys at both routers in the same moment."""
    tasks = []
    for number in range(round(SAME_KEYS * scene.longer)):
        key, seed = f"{scene.load.name}-same-{number}", scene.rng.randrange(2**31)
        for router in range(ROUTERS):
            tasks.append(scene.load.send(Asked(f"{scene.load.name} same {number}", seed, 1, router, key=key)))
    await asyncio.gather(*tasks)
    made = [run for run in await all_runs(scene.estate, f"{scene.load.name} same ") if run.status is RunStatus.SUCCEEDED]
    stored = [
        event for event in scene.estate.events() if event["event"] == "stored" and event["run_id"] in {r.id for r in made}
    ]
    expected = len(tasks) // ROUTERS
    if (len(made), len(stored)) != (expected, expected):
        scene.found.hold("I5", f"{len(made)} runs and {len(stored)} generations for {expected} keys")


async def asleep(scene: Scene) -> None:
    """F23: SIGSTOP until its runs count as lost, then SIGCONT: it must not believe that they are its own still."""
    router = scene.estate.routers[0]
    router.popen.send_signal(signal.SIGSTOP)
    await asyncio.sleep(ASLEEP_S * scene.longer)
    router.popen.send_signal(signal.SIGCONT)
    scene.over()


async def replaced(scene: Scene) -> None:
    """F27: every router and every node is told to stop and started anew, one after another."""
    estate = scene.estate
    for index in range(ROUTERS):
        code = await asyncio.to_thread(estate.routers[index].end)
        scene.found.hold("I9", *([f"router {index} ended with {code}"] if code else []))
        estate.start_router(index)
        await until(lambda index=index: estate.answers(f"{estate.router_url(index)}/ready", 200), what=f"router {index}")
    for name in NODES:
        node = estate.nodes[name]
        node.terminate()
        await asyncio.to_thread(node.wait, 60)
        estate.start_node(name)
        await until(lambda: estate.sees_all(0), what=f"node {name}")
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
    wrong = [] if took_s < STOPS_AT_ONCE_S and router.popen.returncode == 0 else [f"{took_s:.1f} s, {router.popen.returncode}"]
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
    Fault(code="F21", title="router SIGKILL", strike=killed, may_fail=True, databases=("postgres",)),
    Fault(code="F22", title="same keys at two routers", strike=asked_twice),
    Fault(
        code="F23",
        title="router SIGSTOP",
        strike=asleep,
        may_refuse=True,
        recovers_within_s=5,
        databases=("postgres",),
        possible=("postgres",),
    ),
    Fault(code="F27", title="rolling restart", strike=replaced, databases=("postgres",)),
    Fault(code="F28", title="SIGTERM twice", strike=told_twice, may_refuse=True, databases=("sqlite",)),
]
