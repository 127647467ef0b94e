"""Nodes that die, hang and come back.

Who is stopped in the middle of a commit to SQLite holds its lock for all, and no one can take it away: processes that may
hang, or machines, are what PostgreSQL is for. So that is tried there.
"""

import signal

from tests.faults.campaign import Fault, Scene
from tests.faults.estate import NODES, ROUTERS, until

OUT_OF_THE_POOL_S = 10.0


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
    if took_s > OUT_OF_THE_POOL_S:
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
        url = f"http://127.0.0.1:{estate.node_ports[name]}/node/v1/status"
        await until(lambda url=url: estate.answers(url, 200), what=f"node {name}")
    scene.over()


FAULTS = [
    Fault(code="F1", title="node SIGKILL", strike=killed),
    Fault(code="F2", title="node SIGSTOP", strike=hung, databases=("postgres",), possible=("postgres",)),
    Fault(code="F12", title="all nodes down", strike=all_down, may_refuse=True, recovers_within_s=5, databases=("postgres",)),
]
