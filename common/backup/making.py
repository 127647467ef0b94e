"""Making backups, and removing old ones."""

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from common.backup.repository import AssetList, Manifest, Repository, TableFile
from common.backup.rows import Lines, line_of, read_lines
from common.catalog import AssetCorrupt, open_asset_store
from common.catalog.assets import AssetStore
from common.catalog.copying import Row, Shape, Snapshot, shapes, snapshot
from common.clock import utc_now
from common.errors import NotFound
from common.version import VERSION

Progress = Callable[[int, int], None]
"""Called with (pictures done, pictures in all)."""
AT_ONCE = 8
"""Pictures that are copied at the same time: a store behind a network answers each after a while."""
NAMING = {"assets": "sha256", "run_inputs": "sha256"}
"""The tables whose rows keep bytes from being swept, and where they name them."""


@dataclass(frozen=True, slots=True)
class Written:
    """The rows of a backup that is being made."""

    revision: str
    tables: list[TableFile]
    listed: str
    """Hash of the list of pictures that they name, which lies beside them."""


async def create(catalog_url: str, assets_url: str, repository: Repository, progress: Progress) -> Manifest:
    """Make a backup of a catalog and its pictures, while both are in use.

    Pictures that the store has lost are named in the manifest, and the rest is backed up.
    Raises: CatalogUnavailable, SchemaOutdated, Unavailable: the store of pictures. StorageFull: the backup cannot be
    written; nothing of it is left. Conflict: backups are being pruned.
    """
    source = open_asset_store(assets_url)
    try:
        with repository.locked(alone=False), repository.new_snapshot(made_at := utc_now()) as folder:
            written = await write_rows(catalog_url, folder)
            names = written_names(folder, written)
            size_bytes, missing = await copy_all(source, repository.assets, names, progress)
            manifest = manifest_of(made_at, written, len(names), size_bytes, missing)
            write_manifest(folder, manifest)
    finally:
        await source.close()
    return manifest


async def write_rows(catalog_url: str, folder: Path) -> Written:
    """The first half of a backup: the rows of a catalog as of this moment, and the list of pictures that they name.

    Raises: CatalogUnavailable, SchemaOutdated, OSError.
    """
    tables, names = [], set[str]()
    async with snapshot(catalog_url) as found:
        for shape in shapes():
            tables.append(await _write_table(found, shape, folder, lambda row: names.add(row["sha256"])))
    return Written(found.revision, tables, _write_names(sorted(names), folder))


def written_names(folder: Path, written: Written) -> list[str]:
    """The pictures that the rows name. Raises: BackupDamaged."""
    return list(read_lines(folder / Repository.ASSET_LIST, written.listed))


def manifest_of(made_at: datetime, written: Written, count: int, size_bytes: int, missing: list[str]) -> Manifest:
    """What a backup says of itself. count, size_bytes: of its pictures; missing: those that nobody has whole."""
    assets = AssetList(count=count, size_bytes=size_bytes, sha256=written.listed, missing=missing)
    return Manifest(made_at=made_at, made_by=VERSION, revision=written.revision, tables=written.tables, assets=assets)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """The last of a backup that is written. Raises: OSError."""
    (folder / "manifest.json").write_text(manifest.model_dump_json(indent=2))


async def _write_table(found: Snapshot, shape: Shape, folder: Path, on_named: Callable[[Row], None]) -> TableFile:
    with Lines(folder / f"{shape.name}.jsonl.gz") as lines:
        async for batch in found.rows(shape):
            for row in batch:
                lines.write(line_of(row))
                if shape.name in NAMING:
                    on_named(row)
        return TableFile(name=shape.name, columns=dict(shape.columns), rows=lines.count, sha256=lines.sha256)


def _write_names(names: Iterable[str], folder: Path) -> str:
    """Returns: the hash of the list."""
    with Lines(folder / Repository.ASSET_LIST) as lines:
        for name in names:
            lines.write(name)
        return lines.sha256


async def copy_all(source: AssetStore, target: AssetStore, names: list[str], progress: Progress) -> tuple[int, list[str]]:
    """Bring the pictures of these names into another store. Returns: their bytes in all, and those that are not whole at
    the source. Raises: StorageFull, Unavailable."""
    size_bytes, missing, left = 0, list[str](), iter(names)
    done = 0

    async def carry() -> None:
        nonlocal size_bytes, done
        for name in left:
            try:
                size_bytes += await _copy(source, target, name)
            except (NotFound, AssetCorrupt):
                missing.append(name)
            done += 1
            progress(done, len(names))

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(carry())
    except ExceptionGroup as errors:
        # Whichever comes first is what ended it.
        raise errors.exceptions[0] from None
    return size_bytes, sorted(missing)


async def _copy(source: AssetStore, target: AssetStore, name: str) -> int:
    """Returns: its bytes. Raises: NotFound: neither has it. AssetCorrupt: what the source has is damaged.

    What is there with its full length is taken to be whole: `verify` looks.
    """
    there = await _size(target, name)
    size_bytes = await _size(source, name)
    if there is not None and size_bytes in (there, None):
        return there
    content = await source.get(name)
    await target.put(content, sha256=name)
    return len(content)


async def _size(store: AssetStore, name: str) -> int | None:
    try:
        return await store.stat(name)
    except NotFound:
        return None


async def prune(repository: Repository, *, keep: int) -> tuple[list[str], int]:
    """Remove all but the newest `keep` backups (>= 1), and the pictures that none of those knows.

    Returns: the snapshots removed, and how many pictures. Raises: Conflict: a backup is being made or used.
    BackupDamaged: one that is kept cannot be read; no picture is removed.
    """
    with repository.locked(alone=True):
        repository.remove_unfinished()
        old = repository.names()[:-keep]
        for name in old:
            repository.remove(name)
        needed = {each for name in repository.names() for each in names_of(repository, name)}
        removed = 0
        async for file in repository.assets.iterate():
            if file.sha256 not in needed:
                removed += await repository.assets.delete(file.sha256)
        await repository.assets.remove_unfinished(older_than=utc_now())
    return old, removed


def names_of(repository: Repository, name: str) -> list[str]:
    """The pictures that a snapshot names. Raises: NotFound, BackupDamaged."""
    return list(read_lines(repository.path(name) / Repository.ASSET_LIST, repository.manifest(name).assets.sha256))
