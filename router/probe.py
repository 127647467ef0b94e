"""Knows how every node is: listens to what each says of itself, and looks at those that say nothing.

Each node has a loop of its own, so that a slow one delays no other. A stream that breaks says at once that something is
wrong, and the look that follows what it is: the node, or only the stream.
"""

import asyncio
import time
from contextlib import aclosing

from common.errors import CatalogUnavailable
from common.logs import get_logger
from router.node_client import NodeClient, NodeLost, NodeNonsense, NodeUnreachable
from router.registry import Node, Registry

log = get_logger(__name__)

REFRESH_EVERY_S = 5.0
"""How often nodes added or removed by another process are noticed."""
STEADY_S = 5.0
"""A stream that lasted this long is opened again at once; others are left for more and more looks."""
MOST_LOOKS = 16
"""Looks between two tries at a stream that does not last."""


async def look(node: Node, registry: Registry, client: NodeClient) -> bool:
    """One look at one node; True if it was good."""
    try:
        status = await client.status(node.address)
    except NodeUnreachable as error:
        await registry.failed(node, f"unreachable: {error}", gone=True)
    except (NodeLost, NodeNonsense) as error:
        await registry.failed(node, str(error))
    else:
        await registry.seen(node, status)
        return True
    return False


async def listen(node: Node, registry: Registry, client: NodeClient) -> bool:
    """Take in what a node says until it stops; whether it was well up to then, if it said anything."""
    address, began_s, said = node.address, time.monotonic(), False
    try:
        async with aclosing(client.states(address)) as states:
            async for status in states:
                if node.address != address:
                    return True
                said = True
                if status is not None:
                    await registry.seen(node, status)
                else:
                    await registry.heard(node)
    except (NodeUnreachable, NodeLost, NodeNonsense) as error:
        log.info("node_not_heard", node=node.name, why=str(error), after_s=round(time.monotonic() - began_s, 1))
        if said:
            await registry.failed(node, str(error), gone=True)
    return time.monotonic() - began_s >= STEADY_S


class Prober:
    """Keeps one loop for each node the registry knows."""

    def __init__(self, registry: Registry, client: NodeClient, *, interval_s: float) -> None:
        """interval_s: between looks at a node that does not say by itself how it is."""
        self._registry = registry
        self._client = client
        self._interval_s = interval_s
        self._loops: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                try:
                    await self._registry.refresh()
                except CatalogUnavailable as error:
                    log.warning("nodes_not_refreshed", why=error.message)
                self._match_loops()
                await asyncio.sleep(REFRESH_EVERY_S)
        finally:
            for loop in self._loops.values():
                loop.cancel()
            await asyncio.gather(*self._loops.values(), return_exceptions=True)

    def watch(self) -> None:
        """Start to look at nodes that were just added."""
        self._match_loops()

    def _match_loops(self) -> None:
        nodes = {node.id: node for node in self._registry.nodes()}
        for node_id in self._loops.keys() - nodes.keys():
            self._loops.pop(node_id).cancel()
        for node_id in nodes.keys() - self._loops.keys():
            self._loops[node_id] = asyncio.create_task(self._watch(nodes[node_id]), name=f"probe {nodes[node_id].name}")

    async def _watch(self, node: Node) -> None:
        broken, looks = 0, 0
        while True:
            well = await look(node, self._registry, self._client)
            if well and looks == 0:
                steady = await listen(node, self._registry, self._client)
                broken = 0 if steady else broken + 1
                looks = min(2**broken - 1, MOST_LOOKS)
                # At once: is the node gone, or only its stream?
                continue
            looks = max(0, looks - 1)
            await asyncio.sleep(self._interval_s)
