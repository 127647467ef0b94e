"""The folder of backups.

assets/aa/bb/<sha256>                          bytes of pictures, shared by all snapshots
snapshots/20261125T030000Z/manifest.json       what follows, with its hashes
snapshots/20261125T030000Z/<table>.jsonl.gz    rows
snapshots/20261125T030000Z/assets.txt.gz       the pictures that these rows name
"""

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.catalog.copying import Kind, Shape
from common.catalog.folder_store import FolderStore
from common.errors import AquatintError, Conflict, NotFound, StorageFull

UNFINISHED = ".unfinished-"
_NAME = re.compile(r"\d{8}T\d{6}Z")


class BackupDamaged(AquatintError):
    """A backup is not what was written."""

    code, retryable = "backup_damaged", False


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TableFile(_Part):
    """One table of a snapshot."""

    name: str = Field(pattern=r"^[a-z_]+$")
    columns: dict[str, Kind]
    rows: int = Field(ge=0)
    sha256: str
    """Of the lines, before they were compressed: equal rows have equal hashes."""

    @property
    def shape(self) -> Shape:
        """The table."""
        return Shape(self.name, self.columns)

    @property
    def file(self) -> str:
        """Its name in the snapshot."""
        return f"{self.name}.jsonl.gz"


class AssetList(_Part):
    """The pictures of a snapshot."""

    count: int = Field(ge=0)
    size_bytes: int = Field(ge=0)
    sha256: str
    """Of the list."""
    missing: list[str]
    """Those that the catalog named and nobody had; damaged ones too."""


class Manifest(_Part):
    """What a snapshot says of itself."""

    format: Literal[1] = 1
    made_at: datetime
    made_by: str
    """The version of aquatint."""
    revision: str
    """Of the tables."""
    tables: list[TableFile]
    """In the order in which they can be filled."""
    assets: AssetList

    @property
    def name(self) -> str:
        """Of the snapshot."""
        return _name_of(self.made_at)

    @property
    def rows(self) -> int:
        """Of all tables."""
        return sum(table.rows for table in self.tables)


class Repository:
    """A folder of backups. It is made, for its owner alone, when the first is written."""

    ASSET_LIST = "assets.txt.gz"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.assets = FolderStore(folder / "assets")

    def names(self) -> list[str]:
        """The snapshots, the oldest first."""
        found = self._snapshots.iterdir() if self._snapshots.is_dir() else ()
        return sorted(each.name for each in found if _NAME.fullmatch(each.name))

    def path(self, name: str) -> Path:
        """Where a snapshot lies. Raises: NotFound."""
        path = self._snapshots / name
        if _NAME.fullmatch(name) is None or not path.is_dir():
            raise NotFound(f"There is no backup {name!r} in {self.folder}.", code="backup_not_found")
        return path

    def newest(self) -> str:
        """The snapshot that was made last. Raises: NotFound: there is none."""
        names = self.names()
        if not names:
            raise NotFound(f"There are no backups in {self.folder}.", code="backup_not_found")
        return names[-1]

    def manifest(self, name: str) -> Manifest:
        """What a snapshot says of itself. Raises: NotFound, BackupDamaged: it cannot be read, or is of a newer version."""
        path = self.path(name) / "manifest.json"
        try:
            return Manifest.model_validate_json(path.read_bytes())
        except (OSError, ValidationError) as error:
            raise BackupDamaged(f"The manifest of backup {name} cannot be read: {type(error).__name__}.") from error

    @contextmanager
    def locked(self, *, alone: bool) -> Iterator[None]:
        """Be at work in the folder, alone or beside others. Raises: Conflict: who is there does not let one in."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._snapshots.mkdir(exist_ok=True, mode=0o700)
            lock = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StorageFull(f"The backup folder cannot be written: {error.strerror}.") from error
        try:
            fcntl.flock(lock, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
            yield
        except BlockingIOError as error:
            raise Conflict(f"Something else is at work on the backups in {self.folder}.", code="backups_in_use") from error
        finally:
            os.close(lock)

    @contextmanager
    def new_snapshot(self, made_at: datetime) -> Iterator[Path]:
        """A folder that becomes the snapshot of that moment when the block ends well. Raises: Conflict: there is one."""
        name = _name_of(made_at)
        unfinished = self._snapshots / f"{UNFINISHED}{name}-{os.getpid()}"
        try:
            unfinished.mkdir(mode=0o700)
            yield unfinished
            self.publish(unfinished, name)
        except OSError as error:
            raise StorageFull(f"The backup cannot be written: {error.strerror}.") from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def unfinished(self, made_at: datetime, by: str) -> Path:
        """Where somebody makes the snapshot of that moment who may be broken off, and go on with it later."""
        return self._snapshots / f"{UNFINISHED}{_name_of(made_at)}-{by}"

    def publish(self, unfinished: Path, name: str) -> None:
        """Give a snapshot that is whole its name. Raises: Conflict: there is one. OSError."""
        _sync(*unfinished.iterdir(), unfinished)
        if (self._snapshots / name).exists():
            raise Conflict(f"There is a backup {name} already.")
        unfinished.rename(self._snapshots / name)
        _sync(self._snapshots)

    def remove(self, name: str) -> None:
        """Take a snapshot away. The bytes of its pictures stay."""
        leaving = self._snapshots / f"{UNFINISHED}{name}"
        self.path(name).rename(leaving)
        shutil.rmtree(leaving)

    def remove_unfinished(self) -> None:
        """Take away what a crash left. Only where one is alone."""
        for each in self._snapshots.glob(f"{UNFINISHED}*"):
            shutil.rmtree(each)

    @property
    def _snapshots(self) -> Path:
        return self.folder / "snapshots"


def _name_of(made_at: datetime) -> str:
    return made_at.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")


def _sync(*paths: Path) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
