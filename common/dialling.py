"""Requests to addresses that strangers name: only to listed origins, and never into this server's own network.

A server that calls what strangers name is a way into its network. The name is resolved once, every address it has must be
allowed, and the connection goes to the address that was checked: between a check and a second look-up a name could change.
No redirect is followed, nothing is decompressed, no proxy of the environment is asked, which would look the name up again.
"""

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cache

import httpx

from common.image_origins import DEFAULT_PORTS, Address, ImageOrigins

MAX_URL_CHARACTERS = 8192


class NotDialled(Exception):
    """Why, for the log: a stranger that was told could map the network with it."""


class UnusableUrl(Exception):
    """The URL itself is at fault; the text says how, for whoever sent it."""


def parsed(url: str) -> httpx.URL:
    """A URL that can be called. Raises: UnusableUrl."""
    try:
        parts = httpx.URL(url)
    except (httpx.InvalidURL, UnicodeError):
        raise UnusableUrl("not a valid URL") from None
    if len(url) > MAX_URL_CHARACTERS or not parts.host or parts.userinfo:
        raise UnusableUrl(f"a URL has a host, no user name, and at most {MAX_URL_CHARACTERS:,} characters")
    return parts


def listed(parts: httpx.URL, origins: ImageOrigins) -> bool:
    """Whether a URL lies in one of the origins."""
    return parts.scheme in DEFAULT_PORTS and origins.hold(parts.scheme, _host(parts), _port(parts))


@asynccontextmanager
async def exchange(
    method: str,
    parts: httpx.URL,
    origins: ImageOrigins,
    *,
    headers: Mapping[str, str],
    timeout_s: float,
    content: bytes | None = None,
) -> AsyncIterator[httpx.Response]:
    """One request to a listed origin, under the name it was asked for: in the Host header and in TLS.

    Raises: NotDialled: an address that is not public; httpx.HTTPError, OSError.
    """
    host, port = _host(parts), _port(parts)
    dialled = parts.copy_with(host=str(await _checked_address(host, port, origins)), port=port, fragment=None)
    sent = {"host": parts.netloc.decode("ascii"), "accept-encoding": "identity", **headers}
    async with (
        httpx.AsyncClient(trust_env=False, verify=trusted(), follow_redirects=False, timeout=timeout_s) as client,
        client.stream(method, dialled, headers=sent, content=content, extensions={"sni_hostname": host}) as answer,
    ):
        yield answer


@cache
def trusted() -> ssl.SSLContext:
    """The authorities that this process trusts, SSL_CERT_FILE among them, read once: that takes twenty milliseconds in which
    nothing else is done."""
    return httpx.create_ssl_context()


def _host(parts: httpx.URL) -> str:
    return parts.raw_host.decode("ascii")


def _port(parts: httpx.URL) -> int:
    return parts.port or DEFAULT_PORTS[parts.scheme]


async def _checked_address(host: str, port: int, origins: ImageOrigins) -> Address:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    if not addresses or not all(map(origins.may_dial, addresses)):
        raise NotDialled("it leads to an address that is not public")
    return addresses[0]
