"""Rows and names as compressed lines, hashed as they are written and as they are read."""

import gzip
import hashlib
import json
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Self

from common.backup.repository import BackupDamaged, TableFile
from common.catalog.copying import BATCH, Row


class Lines:
    """A file of lines to be written."""

    def __init__(self, path: Path) -> None:
        # Neither name nor time in its head: equal lines make equal files.
        self._raw = path.open("xb")
        self._file = gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=self._raw, mtime=0)
        self._hash = hashlib.sha256()
        self.count = 0

    def write(self, line: str) -> None:
        """Append a line, given without its end."""
        content = line.encode() + b"\n"
        self._file.write(content)
        self._hash.update(content)
        self.count += 1

    @property
    def sha256(self) -> str:
        """Of all lines so far."""
        return self._hash.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        self._raw.close()


def line_of(row: Row) -> str:
    """A row in JSON: the same text for the same row, whatever database it comes from."""
    return json.dumps(row, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def read_lines(path: Path, sha256: str) -> Iterator[str]:
    """The lines of a file, without their ends. Raises: BackupDamaged, after the last: they are not those that were written."""
    actual = hashlib.sha256()
    try:
        with gzip.open(path, "rb") as file:
            for line in file:
                actual.update(line)
                yield line[:-1].decode()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise BackupDamaged(f"{path.name} cannot be read: {type(error).__name__}.") from error
    if actual.hexdigest() != sha256:
        raise BackupDamaged(f"{path.name} is not what was written.")


def read_rows(folder: Path, table: TableFile) -> Iterator[Row]:
    """The rows of a table of a snapshot. Raises: BackupDamaged."""
    count = 0
    for line in read_lines(folder / table.file, table.sha256):
        count += 1
        try:
            row = json.loads(line)
        except ValueError as error:
            raise BackupDamaged(f"{table.file} is not what was written: row {count} cannot be read.") from error
        yield row
    if count != table.rows:
        raise BackupDamaged(f"{table.file} has {count} rows and should have {table.rows}.")


async def in_batches(rows: Iterable[Row]) -> AsyncIterator[list[Row]]:
    """The same, as many at a time as a database is given."""
    rest = iter(rows)
    while batch := list(islice(rest, BATCH)):
        yield batch
