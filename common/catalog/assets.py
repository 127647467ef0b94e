"""The bytes of images, write-once and named by their sha256, behind one interface: a folder or S3."""

import hashlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

import anyio.to_thread

from common.catalog.errors import AssetCorrupt
from common.errors import InvalidRequest, NotFound

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class AssetFile:
    """Stored bytes, as found while walking through the store."""

    sha256: str
    size_bytes: int
    modified_at: datetime
    """When they were last put."""


class AssetStore(Protocol):
    """Every method that takes a sha256 raises InvalidRequest for what is none: no path can be smuggled in."""

    async def put(self, content: bytes, *, sha256: str | None = None) -> str:
        """Store bytes; they are durable when this returns. The same bytes twice is fine.

        sha256: what they must hash to, if the caller knows. Returns: their sha256.
        Raises: StorageFull: they cannot be written; nothing is left. AssetCorrupt: they are not what `sha256` says.
        """
        ...

    async def get(self, sha256: str) -> bytes:
        """The bytes, checked. Raises: NotFound. AssetCorrupt: they are not what was stored. Unavailable."""
        ...

    async def stat(self, sha256: str) -> int:
        """Their size in bytes, unchecked. Raises: NotFound, Unavailable."""
        ...

    async def delete(self, sha256: str, *, if_older_than: datetime | None = None) -> bool:
        """Remove bytes, unless they were put after `if_older_than`. False: they stay, or are not there."""
        ...

    def iterate(self, first: str = "") -> AsyncIterator[AssetFile]:
        """All stored bytes, in no order; those alone whose names begin so, if two digits are given. Raises: Unavailable."""
        ...

    async def remove_unfinished(self, *, older_than: datetime) -> int:
        """Remove what a crash in the middle of `put` left. Returns: how many files."""
        ...

    async def close(self) -> None:
        """Nothing may be asked afterwards."""
        ...


def open_asset_store(url: str) -> AssetStore:
    """The store at a path, `file:///...` or `s3://bucket/prefix`. S3 credentials come from the usual AWS_* variables.

    Raises: InvalidRequest: another kind of URL.
    """
    parts = urlsplit(url)
    if parts.scheme == "s3" and parts.netloc:
        from common.catalog.s3_store import S3Store

        return S3Store(bucket=parts.netloc, prefix=parts.path.strip("/"))
    from common.catalog.folder_store import FolderStore

    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return FolderStore(Path(unquote(parts.path)))
    if "://" not in url and url:
        return FolderStore(Path(url))
    raise InvalidRequest(f"Assets are stored in a folder or at s3://bucket/prefix, not at {url!r}.")


def is_sha256(name: str) -> bool:
    """Whether `name` is 64 lowercase hexadecimal digits."""
    return _SHA256.fullmatch(name) is not None


def key_of(sha256: str) -> str:
    """Where bytes lie in the store: `aa/bb/aabb...`. Raises: InvalidRequest: not a sha256."""
    if not is_sha256(sha256):
        raise InvalidRequest("An asset is named by 64 lowercase hexadecimal digits.", param="sha256")
    return f"{sha256[:2]}/{sha256[2:4]}/{sha256}"


def no_asset(sha256: str) -> NotFound:
    """The error for bytes that are not there."""
    return NotFound(f"There is no asset {sha256}.", code="asset_not_found")


async def hash_of(content: bytes) -> str:
    """The sha256 of bytes, computed off the event loop."""
    return await anyio.to_thread.run_sync(lambda: hashlib.sha256(content).hexdigest())


async def checked_hash_of(content: bytes, claimed: str | None) -> str:
    """The sha256 of bytes about to be stored. Raises: InvalidRequest: no sha256. AssetCorrupt: it is another."""
    if claimed is not None:
        key_of(claimed)
    sha256 = await hash_of(content)
    if claimed not in (None, sha256):
        raise AssetCorrupt(claimed or sha256)
    return sha256
