"""Making backups, and removing old ones."""

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

from common.backup.repository import AssetList, Manifest, Repository, TableFile
from common.backup.rows import Lines, line_of, read_lines
from common.catalog import AssetCorrupt, open_asset_store
from common.catalog.assets import AssetStore
from common.catalog.columns import utc_now
from common.catalog.copying import Row, Shape, Snapshot, shapes, snapshot
from common.errors import NotFound
from common.version import VERSION

Progress = Callable[[int, int], None]
"""Called with (pictures done, pictures in all)."""
AT_ONCE = 8
"""Pictures that are copied at the same time: a store behind a network answers each after a while."""
NAMING = {"assets": "sha256", "run_inputs": "sha256"}
"""The tables whose rows keep bytes from being swept, and where they name them."""


async def create(catalog_url: str, assets_url: str, repository: Repository, progress: Progress) -> Manifest:
    """Make a backup of a catalog and its pictures, while both are in use.

    Pictures that the store has lost are named in the manifest, and the rest is backed up.
    Raises: CatalogUnavailable, SchemaOutdated, Unavailable: the store of pictures. StorageFull: the backup cannot be
    written; nothing of it is left. Conflict: backups are being pruned.
    """
    source = open_asset_store(assets_url)
    try:
        with repository.locked(alone=False), repository.new_snapshot(made_at := utc_now()) as folder:
            async with snapshot(catalog_url) as found:
                tables, names = await _write_tables(found, folder)
            listed = _write_names(names, folder)
            size_bytes, missing = await copy_all(source, repository.assets, names, progress)
            assets = AssetList(count=len(names), size_bytes=size_bytes, sha256=listed, missing=missing)
            manifest = Manifest(made_at=made_at, made_by=VERSION, revision=found.revision, tables=tables, assets=assets)
            (folder / "manifest.json").write_text(manifest.model_dump_json(indent=2))
    finally:
        await source.close()
    return manifest


async def _write_tables(found: Snapshot, folder: Path) -> tuple[list[TableFile], list[str]]:
    """Returns: the tables, and the names of the pictures their rows refer to."""
    tables, names = [], set[str]()
    for shape in shapes():
        tables.append(await _write_table(found, shape, folder, lambda row: names.add(row["sha256"])))
    return tables, sorted(names)


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
