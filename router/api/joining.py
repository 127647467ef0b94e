"""/fleet/join: nodes that make themselves known, with a key that opens nothing else."""

from typing import Any

from fastapi import APIRouter

from common.logs import get_logger
from router.api.admin_nodes import NewNode, Token
from router.auth import JoinKey
from router.services import ServicesDep

api = APIRouter(prefix="/fleet")
log = get_logger(__name__)


class JoiningNode(NewNode):
    """Body of POST /fleet/join."""

    token: Token


@api.post("/join")
async def join(node: JoiningNode, key: JoinKey, services: ServicesDep) -> dict[str, Any]:
    """Take down a node, or where it is now. `approved`: it has runs from now on, or once an operator says so.

    A known name needs the node's own token, and moves its address.
    """
    approved = "join-approved" in key.scopes
    record = await services.catalog.nodes.join(name=node.name, url=node.url, token=node.token, approved=approved)
    log.info("node_joined", node=record.name, url=record.url, key=key.name, approved=record.approved_at is not None)
    await services.registry.refresh()
    services.prober.watch()
    return {"object": "node", "name": record.name, "url": record.url, "approved": record.approved_at is not None}
