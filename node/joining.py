"""A node that tells a router of itself, so that nobody has to register it."""

import asyncio
import socket
from urllib.parse import urlsplit

import httpx

from common.logs import get_logger
from node.settings import NodeSettings
from node.tokens import Tokens

log = get_logger(__name__)

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0


async def join(settings: NodeSettings, tokens: Tokens) -> None:
    """Tell the router that the settings name, again and again until it has taken it down.

    Also after a refusal: an operator who gives the key its scope, or removes another node of this name, need not start this
    one anew.
    """
    own = settings.node
    assert own.join_url is not None
    told = {"name": own.name, "url": own.advertised_url or own_url(own.join_url, own.port), "token": tokens.current}
    headers = {"authorization": f"Bearer {own.join_key}"}
    wait_s = FIRST_WAIT_S
    async with httpx.AsyncClient(base_url=own.join_url, headers=headers, timeout=10, trust_env=False) as client:
        while True:
            try:
                answer = await client.post("/fleet/join", json=told)
            except httpx.HTTPError as error:
                log.warning("join_failed", router=own.join_url, why=type(error).__name__, again_in_s=wait_s)
            else:
                if answer.status_code == 200:
                    log.info("joined", router=own.join_url, url=told["url"], approved=answer.json()["approved"])
                    return
                why = _message(answer)
                log.warning("join_refused", router=own.join_url, status=answer.status_code, why=why, again_in_s=wait_s)
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)


def own_url(router_url: str, port: int) -> str:
    """This machine's address on the way to a router. Nothing is sent."""
    parts = urlsplit(router_url)
    host, to = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, to, type=socket.SOCK_DGRAM)[0]
        with socket.socket(kind, socket.SOCK_DGRAM) as way:
            way.connect(address)
            mine = str(way.getsockname()[0])
    except OSError:
        mine = socket.getfqdn()
    return f"http://[{mine}]:{port}" if ":" in mine else f"http://{mine}:{port}"


def _message(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return "it is not an answer of a router"
