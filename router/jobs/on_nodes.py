"""Jobs that a node does: this side asks, and asks again when the node was started anew, until it has ended."""

import asyncio

from common.errors import EngineFailed, Unavailable
from common.node_api import ChoreKind, ChoreOrder, ChoreState, ChoreStatus
from router.jobs.work import Stopped, Told, Work
from router.node_client import Address, NodeLost, NodeNonsense, NodeUnreachable

LOOK_EVERY_S = 1.0
SILENCE_S = 300.0
"""A node that is away for longer has failed the job: whoever started it is told, and starts it again."""


async def pull(work: Work) -> None:
    """Bring a checkpoint to a node. result: `path` there, and `bytes`."""
    params = work.job.params
    await _done_there(work, ChoreOrder(name=work.job.id, kind=ChoreKind.PULL, source=params["source"]))


async def read_hashes(work: Work) -> None:
    """Read the hashes of a node's checkpoints. result: `files`, how many were `read`, and those that have `changed`."""
    await _done_there(work, ChoreOrder(name=work.job.id, kind=ChoreKind.HASHES, verify=work.job.params.get("verify", False)))


async def _done_there(work: Work, order: ChoreOrder) -> None:
    async def follow() -> Told:
        silent_since_s = asyncio.get_running_loop().time()
        while True:
            try:
                status = await _asked(work, order)
                silent_since_s = asyncio.get_running_loop().time()
            except (NodeUnreachable, NodeLost, NodeNonsense) as error:
                if asyncio.get_running_loop().time() - silent_since_s > SILENCE_S:
                    raise EngineFailed(f"The node does not answer: {error}.", code="node_silent") from None
                await work.tell(work.done, work.total)
            else:
                if status.state is ChoreState.SUCCEEDED:
                    return {"done": status.done, "total": status.total, "result": status.result or {}}
                if status.state is not ChoreState.RUNNING:
                    raise EngineFailed(status.error or "The node was told to stop it.", code="chore_failed")
                await _tell(work, status, order)
            await asyncio.sleep(LOOK_EVERY_S)

    told = await work.step("follow", follow)
    work.done, work.total = told["done"], told["total"]
    work.result |= told["result"]


async def _asked(work: Work, order: ChoreOrder) -> ChoreStatus:
    return await work.tools.client.begin_chore(await _address(work), order)


async def _tell(work: Work, status: ChoreStatus, order: ChoreOrder) -> None:
    try:
        await work.tell(status.done, status.total)
    except Stopped:
        await work.tools.client.end_chore(await _address(work), order.name)
        raise


async def _address(work: Work) -> Address:
    """Looked up each time: a node may move, and its token be rotated, while the job goes on. Raises: NotFound, Unavailable."""
    node = await work.tools.catalog.nodes.get(work.job.params["node"])
    if node.approved_at is None:
        raise Unavailable(f"Node {node.name!r} waits for approval.")
    return Address(node.url, node.token)
