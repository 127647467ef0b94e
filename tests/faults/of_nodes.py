"""Nodes that die, hang and come back.

Who is stopped in the middle of a commit to SQLite holds its lock for all, and no one can take it away: processes that may
hang, or machines, are what PostgreSQL is for. So that is tried there.
"""

import signal

from tests.faults.campaign import Fault, Scene
from tests.faults.estate import NODES, ROUTERS, until
from tests.faults.real import RealEstate

OUT_OF_THE_POOL_S = 10.0
ALIVE_WITHIN_S = 1.0
"""For a node whose engine is gone."""
LOOKS = 5
"""Of which one must be in time: a machine at work may hold up any process for a moment."""
HUNG_WITHIN_S = 150.0
"""How soon an engine that hangs must have been replaced: a node is patient for 60 s, and starts another in some seconds."""


async def killed(scene: Scene) -> None:
    """F1: SIGKILL, with runs on it; it stays away."""
    scene.estate.nodes["a"].kill()
    scene.estate.nodes["a"].wait()


async def hung(scene: Scene) -> None:
    """F2: SIGSTOP until every router has given up what is there, then SIGCONT, and what it still says is late."""
    estate = scene.estate

    async def both(*states: str) -> bool:
        return all([(await estate.states(router))["a"] in states for router in range(ROUTERS)])

    estate.nodes["a"].send_signal(signal.SIGSTOP)
    took_s = await until(lambda: both("error", "offline"), what="the node to be out of the pool")
    if took_s > OUT_OF_THE_POOL_S * scene.slow:
        scene.found.hold("I7", f"a node that hangs was in the pool for {took_s:.1f} s")
    await until(lambda: both("offline"), what="both routers to give up the node")
    estate.nodes["a"].send_signal(signal.SIGCONT)
    scene.over()


async def all_down(scene: Scene) -> None:
    """F12: every node killed, and started again once requests are refused."""
    estate = scene.estate
    for name in NODES:
        estate.nodes[name].kill()
        estate.nodes[name].wait()
    await until(lambda: any(each.outcome == "refused" for each in scene.load.asked), what="the first refusal", within_s=40)
    for name in NODES:
        estate.start_node(name)
    for name in NODES:
        await estate.node_well(name)
    scene.over()


async def engine_gone(scene: Scene) -> None:
    """F11: SIGABRT for the engine of one node; in the long form SIGSTOP for another's, which its node takes for hung."""
    estate = scene.estate
    assert isinstance(estate, RealEstate)
    blows = [("a", signal.SIGABRT), ("b", signal.SIGSTOP)]
    for name, number in blows[: 2 if scene.longer > 1 else 1]:
        worker = estate.worker_of(name)
        worker.send_signal(number)
        url = f"{estate.node_url(name)}/health"
        if not any([await estate.answers(url, 200, within_s=ALIVE_WITHIN_S * scene.slow) for _ in range(LOOKS)]):
            scene.found.hold("I7", f"node {name} did not answer within a second, {LOOKS} times")
        await until(
            lambda worker=worker: not worker.is_running(), what=f"the engine of {name} to be gone", within_s=HUNG_WITHIN_S
        )
        await estate.node_well(name)
        if estate.worker_of(name).pid == worker.pid:
            scene.found.hold("I9", f"node {name} has no new engine")
    scene.over()


FAULTS = [
    Fault(code="F1", title="node SIGKILL", strike=killed),
    Fault(code="F2", title="node SIGSTOP", strike=hung, kinds=("postgres",), possible=("postgres",)),
    Fault(code="F11", title="engine SIGABRT, SIGSTOP", strike=engine_gone, kinds=("real",), possible=("real",)),
    Fault(code="F12", title="all nodes down", strike=all_down, may_refuse=True, recovers_within_s=5, kinds=("postgres",)),
]
