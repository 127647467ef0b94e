"""From where pictures named by URL may be fetched. Settings read this, so it loads fast: no HTTP library here."""

import ipaddress
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

DEFAULT_PORTS = {"https": 443, "http": 80}
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_CARRIES_IPV4 = tuple(ipaddress.IPv6Network(text) for text in ("::ffff:0:0/96", "64:ff9b::/96", "2002::/16", "2001::/32"))
"""Mapped, NAT64, 6to4 and Teredo addresses (RFC 4291, 6052, 3056, 4380): each can lead to any IPv4 address."""


@dataclass(frozen=True, slots=True)
class Origin:
    """`https://host`, `https://*.domain` or either with a port. Plain http only where an operator writes it out."""

    scheme: str
    host: str
    """In small letters; a leading `*.` stands for one or more labels."""
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read one as an operator writes it. Raises: ValueError, naming the rule."""
        parts = urlsplit(text)
        if parts.scheme not in DEFAULT_PORTS or not parts.hostname or parts.username is not None:
            raise ValueError(
                f"{text!r} is not an origin such as 'https://pictures.example.com' or 'https://*.example.com:8443'"
            )
        if parts.path or parts.query or parts.fragment:
            raise ValueError(f"{text!r} is more than an origin: leave out everything after the host")
        if "*" in parts.hostname.removeprefix("*."):
            raise ValueError(f"{text!r}: '*.' may only begin the host")
        return cls(parts.scheme, parts.hostname, parts.port or DEFAULT_PORTS[parts.scheme])

    def holds(self, scheme: str, host: str, port: int) -> bool:
        """Whether a URL with these parts lies in it."""
        if (scheme, port) != (self.scheme, self.port):
            return False
        return host.endswith(self.host[1:]) if self.host.startswith("*.") else host == self.host


@dataclass(frozen=True, slots=True)
class ImageOrigins:
    """All of them. Empty: nothing is fetched."""

    origins: tuple[Origin, ...] = ()
    networks: tuple[Network, ...] = ()
    """Networks whose addresses count as public: an object store inside an operator's own network."""

    @classmethod
    def parse(cls, origins: list[str], networks: list[str]) -> Self:
        """Read them as settings hold them. Raises: ValueError."""
        return cls(tuple(map(Origin.parse, origins)), tuple(map(ipaddress.ip_network, networks)))

    def hold(self, scheme: str, host: str, port: int) -> bool:
        """Whether a URL with these parts may be fetched at all."""
        return any(origin.holds(scheme, host, port) for origin in self.origins)

    def may_dial(self, address: Address) -> bool:
        """Whether a connection to this address may be made. Link-local ones never: clouds keep their secrets there."""
        if address.is_link_local or address.is_multicast or address.is_unspecified:
            return False
        if isinstance(address, ipaddress.IPv6Address) and any(address in carrier for carrier in _CARRIES_IPV4):
            return False
        return address.is_global or any(address in network for network in self.networks)
