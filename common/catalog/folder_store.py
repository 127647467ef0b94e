"""Assets in a folder. Several processes may use it at once, also over a network file system with atomic renames."""

import hashlib
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from anyio.to_thread import run_sync

from common.catalog.assets import AssetFile, checked_hash_of, is_sha256, key_of, no_asset
from common.catalog.errors import AssetCorrupt
from common.errors import StorageFull, Unavailable

UNFINISHED = ".unfinished-"
LEAVING = ".leaving-"
ANY = "[0-9a-f][0-9a-f]"
"""Folders of both levels."""


class FolderStore:
    """An AssetStore. The folder is made when the first bytes are stored."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def put(self, content: bytes, *, sha256: str | None = None) -> str:
        """See AssetStore."""
        name = await checked_hash_of(content, sha256)
        try:
            await run_sync(_write, self._root, self._root / key_of(name), content)
        except OSError as error:
            raise StorageFull(f"The asset folder cannot be written: {error.strerror}.", retry_after_s=30) from error
        return name

    async def get(self, sha256: str) -> bytes:
        """See AssetStore."""
        path = self._root / key_of(sha256)

        def read() -> tuple[bytes, str]:
            content = path.read_bytes()
            return content, hashlib.sha256(content).hexdigest()

        try:
            content, actual = await run_sync(read)
        except FileNotFoundError:
            raise no_asset(sha256) from None
        except OSError as error:
            raise _unreadable(error) from error
        if actual != sha256:
            raise AssetCorrupt(sha256)
        return content

    async def stat(self, sha256: str) -> int:
        """See AssetStore."""
        path = self._root / key_of(sha256)
        try:
            return (await run_sync(path.stat)).st_size
        except FileNotFoundError:
            raise no_asset(sha256) from None
        except OSError as error:
            raise _unreadable(error) from error

    async def delete(self, sha256: str, *, if_older_than: datetime | None = None) -> bool:
        """See AssetStore."""
        path = self._root / key_of(sha256)
        try:
            return await run_sync(_remove, path, if_older_than)
        except OSError as error:
            raise _unreadable(error) from error

    async def iterate(self, first: str = "") -> AsyncIterator[AssetFile]:
        """See AssetStore."""
        for folder in await self._folders(first or ANY):
            for path, stat in await run_sync(_files, folder):
                if is_sha256(path.name):
                    yield AssetFile(path.name, stat.st_size, _modified_at(stat))

    async def remove_unfinished(self, *, older_than: datetime) -> int:
        """See AssetStore."""
        removed = 0
        for folder in await self._folders():
            for path, stat in await run_sync(_files, folder):
                if path.name.startswith((UNFINISHED, LEAVING)) and _modified_at(stat) < older_than:
                    removed += 1
                    await run_sync(partial(path.unlink, missing_ok=True))
        return removed

    async def close(self) -> None:
        """See AssetStore."""

    async def _folders(self, first: str = ANY) -> list[Path]:
        try:
            return await run_sync(lambda: sorted(self._root.glob(f"{first}/{ANY}")))
        except OSError as error:
            raise _unreadable(error) from error


def _unreadable(error: OSError) -> Unavailable:
    return Unavailable(f"The asset folder cannot be used: {error.strerror}.", code="asset_store_unavailable", retry_after_s=5)


def _modified_at(stat: os.stat_result) -> datetime:
    return datetime.fromtimestamp(stat.st_mtime, UTC)


def _files(folder: Path) -> list[tuple[Path, os.stat_result]]:
    def found() -> Iterator[tuple[Path, os.stat_result]]:
        for path in folder.iterdir():
            # Others write and remove while we look.
            with suppress(FileNotFoundError):
                yield path, path.stat()

    return list(found())


def _write(root: Path, path: Path, content: bytes) -> None:
    """Bytes under another name, to the disk, then the name: a reader sees all of them or nothing, a crash too."""
    if _renewed(path, content):
        return
    _make_folder(root, path.parent)
    unfinished = path.with_name(UNFINISHED + secrets.token_hex(16))
    try:
        with unfinished.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _renewed(path: Path, content: bytes) -> bool:
    """Whether these very bytes are stored already. They become young again: whoever puts them is about to refer to them."""
    try:
        if path.read_bytes() != content:
            return False  # damaged: written again
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _make_folder(root: Path, folder: Path) -> None:
    missing = [each for each in (folder, *folder.parents) if each.is_relative_to(root) and not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        _sync_folder(made.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path, if_older_than: datetime | None) -> bool:
    """Take the name away, then look how old the bytes are: a `put` of the same bytes either came before, and made them
    young, or comes after, and writes them anew. Looking first would leave a moment for it in between."""
    leaving = path.with_name(LEAVING + path.name)
    try:
        path.rename(leaving)
    except FileNotFoundError:
        return False
    if if_older_than is not None and _modified_at(leaving.stat()) >= if_older_than:
        leaving.rename(path)
        return False
    leaving.unlink()
    return True
