"""What backups are for: looking whether they are whole, and having everything back."""

from dataclasses import dataclass

from common.backup.making import Progress, copy_all, names_of
from common.backup.repository import BackupDamaged, Repository
from common.backup.rows import in_batches, read_rows
from common.catalog import AssetCorrupt, open_asset_store
from common.catalog.copying import load
from common.errors import NotFound


async def verify(repository: Repository, name: str, progress: Progress) -> list[str]:
    """What is wrong with a backup, in words; nothing, if all of it is there and is what was written.

    Every byte is read. Pictures that were lost before the backup was made are told of too.
    Raises: NotFound: there is no such backup. Conflict: backups are being pruned.
    """
    with repository.locked(alone=False):
        folder = repository.path(name)
        try:
            manifest, faults = repository.manifest(name), list[str]()
        except BackupDamaged as error:
            return [str(error)]
        for table in manifest.tables:
            try:
                for _ in read_rows(folder, table):
                    pass
            except BackupDamaged as error:
                faults.append(str(error))
        try:
            names = names_of(repository, name)
        except BackupDamaged as error:
            return [*faults, str(error)]
        lost = set(manifest.assets.missing)
        for done, each in enumerate(names, start=1):
            try:
                await repository.assets.get(each)
            except NotFound:
                faults.append(
                    f"Picture {each} " + ("was lost before the backup was made." if each in lost else "is not there.")
                )
            except AssetCorrupt:
                faults.append(f"Picture {each} is damaged.")
            progress(done, len(names))
    return faults


@dataclass(frozen=True, slots=True)
class Restored:
    """What came back."""

    rows: int
    assets: int
    missing: list[str]
    """Pictures that the rows name and the backup does not have whole."""


async def restore(
    repository: Repository, name: str, catalog_url: str, assets_url: str, progress: Progress, *, despite_damage: bool = False
) -> Restored:
    """Make the catalog and the pictures of a backup again, in a database without rows and any store of pictures.

    First the pictures, then the rows, all of them or none: whatever ends it, it can be done again.
    despite_damage: pictures that are damaged in the backup are left out, instead of ending it.
    Raises: NotFound, BackupDamaged, CatalogUnavailable, StorageFull, Conflict: there are rows in the database, or backups are
    being pruned. SchemaOutdated: the backup is of a newer version.
    """
    target = open_asset_store(assets_url)
    try:
        with repository.locked(alone=False):
            folder, manifest = repository.path(name), repository.manifest(name)
            names = names_of(repository, name)
            _, missing = await copy_all(repository.assets, target, names, progress)
            if not despite_damage and (damaged := sorted(set(missing).difference(manifest.assets.missing))):
                raise BackupDamaged(
                    f"{len(damaged)} of {len(names)} pictures are missing or damaged in backup {name}, such as {damaged[0]}. "
                    "The rows were not restored."
                )
            tables = [(table.shape, in_batches(read_rows(folder, table))) for table in manifest.tables]
            await load(catalog_url, manifest.revision, tables)
    finally:
        await target.close()
    return Restored(manifest.rows, len(names) - len(missing), missing)
