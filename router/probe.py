"""Looks at every node again and again, each in a loop of its own, so that a slow one delays no other."""

import asyncio

from common.errors import CatalogUnavailable
from common.logs import get_logger
from router.node_client import Address, NodeClient, NodeLost, NodeNonsense, NodeUnreachable
from router.registry import Node, Registry

log = get_logger(__name__)

REFRESH_EVERY_S = 5.0
"""How often nodes added or removed by another process are noticed."""


async def look(node: Node, registry: Registry, client: NodeClient) -> bool:
    """One look at one node; True if it was good."""
    try:
        status = await client.status(Address(node.record.url, node.record.token))
    except NodeUnreachable as error:
        await registry.failed(node, f"unreachable: {error}", gone=True)
    except (NodeLost, NodeNonsense) as error:
        await registry.failed(node, str(error))
    else:
        await registry.seen(node, status)
        return True
    return False


class Prober:
    """Keeps one loop for each node the registry knows."""

    def __init__(self, registry: Registry, client: NodeClient, *, interval_s: float) -> None:
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
        while True:
            await look(node, self._registry, self._client)
            await asyncio.sleep(self._interval_s)
