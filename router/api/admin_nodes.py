"""/admin/nodes: the operator's view of the fleet. Addresses appear here and nowhere else; tokens nowhere at all."""

import secrets
import time
from typing import Annotated, Any
from urllib.parse import urlsplit

from fastapi import APIRouter, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from common.catalog import KEEP
from router.auth import AdminKey
from router.placement import Health
from router.probe import look
from router.registry import Node
from router.services import Services, ServicesDep

api = APIRouter(prefix="/admin/nodes")


ADDRESS = r"^https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9._-]*)(:[0-9]{1,5})?(/[A-Za-z0-9._~/-]*)?$"
"""http or https, a host, perhaps a port and a path: neither credentials nor a query nor a fragment."""

TOKEN = r"^[!-~]+$"
"""What an Authorization header can hold."""


def _node_url(url: str) -> str:
    host = urlsplit(url).hostname or ""
    if host.startswith(("169.254.", "fe80:")):
        raise ValueError("must not be a link-local address")
    return url.rstrip("/")


Url = Annotated[str, Field(pattern=ADDRESS, max_length=2048), AfterValidator(_node_url)]
Token = Annotated[str, Field(pattern=TOKEN, min_length=1, max_length=512)]


class NewNode(BaseModel):
    """Body of POST /admin/nodes."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    url: Url
    token: Token | None = None


class MovedNode(BaseModel):
    """Body of PATCH /admin/nodes/{name}: what is absent or null stays as it is."""

    model_config = ConfigDict(extra="forbid")

    url: Url | None = None
    token: Token | None = None


@api.post("", status_code=201)
async def add_node(new: NewNode, key: AdminKey, services: ServicesDep) -> dict[str, Any]:
    """Register a node and look at it once. It is kept even if that look fails: it may just not be up yet."""
    record = await services.catalog.nodes.add(name=new.name, url=new.url, token=new.token)
    return await _taken_over(services, record.id)


@api.get("")
async def list_nodes(key: AdminKey, services: ServicesDep) -> dict[str, Any]:
    """All nodes, those that wait for approval too."""
    waiting = [Node(each, Health.PENDING) for each in await services.catalog.nodes.list() if each.approved_at is None]
    nodes = sorted([*services.registry.nodes(), *waiting], key=lambda node: node.name)
    return {"object": "list", "data": [shown(node) for node in nodes]}


@api.get("/{name}")
async def retrieve_node(name: str, key: AdminKey, services: ServicesDep) -> dict[str, Any]:
    """One node by name or id."""
    return shown(services.registry.get(name))


@api.patch("/{name}")
async def move_node(name: str, moved: MovedNode, key: AdminKey, services: ServicesDep) -> dict[str, Any]:
    """Give a node another address or token, and look at it there. Its state, and runs in flight, stay as they are."""
    record = await services.catalog.nodes.update(services.registry.get(name).id, url=moved.url, token=moved.token or KEEP)
    return await _taken_over(services, record.id)


@api.delete("/{name}", status_code=204)
async def remove_node(name: str, key: AdminKey, services: ServicesDep) -> Response:
    """Forget a node. Runs in flight there are tried elsewhere; drain it first to let them end."""
    await services.catalog.nodes.remove(name)
    await services.registry.refresh()
    services.prober.watch()
    return Response(status_code=204)


@api.post("/{name}/approve")
async def approve_node(name: str, key: AdminKey, services: ServicesDep) -> dict[str, Any]:
    """Let a node that joined by itself have runs, and look at it once."""
    record = await services.catalog.nodes.approve(name)
    return await _taken_over(services, record.id)


@api.post("/{name}/rotate")
async def rotate_token(name: str, key: AdminKey, services: ServicesDep) -> dict[str, Any]:
    """Give a node a new token, which nobody is shown. Runs in flight stay, and so do other routers' ways to it: the node
    lets its old token open until a while after the new one was used."""
    node = services.registry.get(name)
    token = secrets.token_urlsafe(32)
    await services.client.set_token(node.address, token)
    await services.catalog.nodes.update(node.id, token=token)
    return await _taken_over(services, node.id)


@api.post("/{name}/test")
async def test_node(name: str, key: AdminKey, services: ServicesDep) -> dict[str, Any]:
    """Look at a node now."""
    node = services.registry.get(name)
    good = await look(node, services.registry, services.client)
    return shown(node) | {"reachable": good}


@api.post("/{name}/drain")
async def drain_node(name: str, key: AdminKey, services: ServicesDep) -> dict[str, Any]:
    """Give a node no more runs; those it has end."""
    return await _set(services, name, Health.DRAINING)


@api.post("/{name}/resume")
async def resume_node(name: str, key: AdminKey, services: ServicesDep) -> dict[str, Any]:
    """Take a drained node back."""
    shown_node = await _set(services, name, Health.PENDING)
    node = services.registry.get(name)
    await look(node, services.registry, services.client)
    return shown(node) if node.health is not Health.PENDING else shown_node


async def _taken_over(services: Services, node_id: str) -> dict[str, Any]:
    """What the catalog now says of a node is in force; it is looked at once, and from here on."""
    await services.registry.refresh()
    node = services.registry.get(node_id)
    await look(node, services.registry, services.client)
    services.prober.watch()
    return shown(node)


async def _set(services: Services, name: str, state: Health) -> dict[str, Any]:
    node = services.registry.get(name)
    await services.catalog.nodes.set_state(node.id, str(state))
    await services.registry.refresh()
    return shown(node)


def shown(node: Node) -> dict[str, Any]:
    """A node as JSON."""
    status = node.status
    return {
        "id": node.id,
        "object": "node",
        "name": node.name,
        "url": node.record.url,
        "state": str(node.health),
        "approved": node.record.approved_at is not None,
        "error": node.last_error,
        "in_flight": len(node.ours),
        "phase": None if status is None else str(status.phase),
        "version": None if status is None else status.version,
        "device": None if status is None else status.device.model_dump(),
        "models": []
        if status is None
        else [{"id": m.id, "resident": m.resident, "unavailable": m.unavailable} for m in status.models],
        "held_off": node.held_off(time.monotonic()),
        "jobs": [] if status is None else [job.model_dump() for job in status.jobs],
        "created": int(node.record.created_at.timestamp()),
        "last_seen": int(node.record.last_seen_at.timestamp()) if node.record.last_seen_at else None,
    }
