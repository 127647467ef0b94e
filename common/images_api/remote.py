"""Pictures that a JSON edit names by URL.

Off unless an operator lists origins, for a server that fetches what strangers name is a way into its own network. The
name is resolved once, every address it has must be allowed, and the connection goes to the address that was checked:
between a check and a second look-up a name could change. No redirect is followed, nothing is decompressed.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Mapping
from typing import Any

import httpx

from common.errors import InvalidRequest
from common.image_origins import DEFAULT_PORTS, Address, ImageOrigins
from common.images_api.uploads import MAX_IMAGES, too_large
from common.logs import get_logger
from common.upload_limits import UploadLimits

log = get_logger(__name__)

TIMEOUT_S = 10.0
"""For one picture, from the look-up of its host's name to its last byte."""
MAX_URL_CHARACTERS = 8192


class _NotFetched(Exception):
    """Why, for the log: a client that was told could map the network with it."""


async def fetch_named(given: Mapping[str, Any], origins: ImageOrigins, limits: UploadLimits) -> dict[str, bytes]:
    """The content behind each http(s) URL that a JSON edit names in `images` or `mask`.

    Shapes that are wrong in other ways are left to whoever reads the request.
    Raises: InvalidRequest: an origin that is not listed, a picture that cannot be fetched or is too large.
    """
    named = {url: name for name, url in _urls(given)}
    try:
        async with asyncio.TaskGroup() as group:
            tasks = {url: group.create_task(_fetch(name, url, origins, limits)) for url, name in named.items()}
    except ExceptionGroup as refused:
        raise refused.exceptions[0] from None
    return {url: task.result() for url, task in tasks.items()}


def is_remote(url: str) -> bool:
    """Whether a picture has to be fetched."""
    return url[:8].lower().startswith(("http://", "https://"))


def _urls(given: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name for messages, url)"""
    images = given.get("images")
    items = [(f"images[{at}]", item) for at, item in enumerate(images[:MAX_IMAGES])] if isinstance(images, list) else []
    items.append(("mask", given.get("mask")))
    urls = [(name, item.get("image_url")) for name, item in items if isinstance(item, dict)]
    return [(name, url) for name, url in urls if isinstance(url, str) and is_remote(url)]


async def _fetch(name: str, url: str, origins: ImageOrigins, limits: UploadLimits) -> bytes:
    parts = _parsed(name, url)
    host, port = parts.raw_host.decode("ascii"), parts.port or DEFAULT_PORTS[parts.scheme]
    if not origins.hold(parts.scheme, host, port):
        raise _refused(name, "this server fetches pictures from listed origins only, and this is none of them")
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await _get(name, parts, await _checked_address(host, port, origins), port, limits)
    except (TimeoutError, httpx.HTTPError, OSError, _NotFetched) as error:
        log.info("image_url_not_fetched", host=host, reason=f"{type(error).__name__}: {error}"[:200])
        raise _refused(name, "the picture could not be fetched") from None


def _parsed(name: str, url: str) -> httpx.URL:
    try:
        parts = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError):
        raise _refused(name, "not a valid URL") from None
    if len(url) > MAX_URL_CHARACTERS or not parts.host or parts.userinfo:
        raise _refused(name, f"a URL has a host, no user name, and at most {MAX_URL_CHARACTERS:,} characters")
    return parts


async def _checked_address(host: str, port: int, origins: ImageOrigins) -> Address:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    if not addresses or not all(map(origins.may_dial, addresses)):
        raise _NotFetched("it leads to an address that is not public")
    return addresses[0]


async def _get(name: str, parts: httpx.URL, address: Address, port: int, limits: UploadLimits) -> bytes:
    """One GET of the checked address, under the name it was asked for: in the Host header and in TLS."""
    dialled = parts.copy_with(host=str(address), port=port, fragment=None)
    headers = {"host": parts.netloc.decode("ascii"), "accept": "image/*", "accept-encoding": "identity"}
    content = bytearray()
    async with (
        # No proxy of the environment, which would look the name up again; its SSL_CERT_FILE is heeded.
        httpx.AsyncClient(
            trust_env=False, verify=httpx.create_ssl_context(), follow_redirects=False, timeout=TIMEOUT_S
        ) as client,
        client.stream("GET", dialled, headers=headers, extensions={"sni_hostname": parts.raw_host.decode("ascii")}) as answer,
    ):
        if answer.status_code != 200:
            raise _NotFetched(f"it was answered {answer.status_code}")
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise _NotFetched("it was answered compressed")
        async for chunk in answer.aiter_raw():
            content += chunk
            if len(content) > limits.max_bytes:
                raise too_large(name, limits)
    return bytes(content)


def _refused(name: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid '{name}.image_url': {why}.", param=f"{name}.image_url", code="invalid_image_url")
