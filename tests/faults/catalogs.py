"""The catalog of a campaign: a file, or a PostgreSQL server of its own, which faults stop, kill and start again."""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from common.catalog import sqlite_url
from tests.conftest import start_postgres


class Database:
    """What faults can do to it. kind: sqlite or postgres."""

    def __init__(self, kind: str, url: str, server: Any = None) -> None:
        self.kind = kind
        self.url = url
        self._server = server

    def let_in(self, group_id: int) -> None:
        """Let the users of a group at PostgreSQL's socket, which lies among its data."""
        os.chown(self._server.pgdata, -1, group_id)
        self._server.pgdata.chmod(0o750)

    def processes(self) -> list[psutil.Process]:
        """PostgreSQL's, the one that listens first."""
        first = psutil.Process(int((self._server.pgdata / "postmaster.pid").read_text().splitlines()[0]))
        return [first, *first.children()]

    def kill(self) -> None:
        """SIGKILL, all of it, as when the machine goes."""
        killed = self.processes()
        for process in killed:
            process.send_signal(signal.SIGKILL)
        while any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in killed):
            time.sleep(0.01)
        # Where nobody reaps orphans their ids stay taken, and their locks would seem to be held.
        for lock in (self._server.pgdata / "postmaster.pid", *self._server.pgdata.glob(".s.PGSQL.*.lock")):
            lock.unlink()

    def start(self) -> None:
        """Start it again, if it does not run."""
        self._server.ensure_postgres_running()


@contextmanager
def catalog_of(kind: str, home: Path) -> Iterator[Database]:
    """An empty database of this kind."""
    if kind == "sqlite":
        yield Database(kind, sqlite_url(home / "catalog.db"))
        return
    # Its socket needs a short path.
    folder = Path(tempfile.mkdtemp(prefix="aquatint-faults-pg-"))
    server = start_postgres(folder / "data")
    try:
        yield Database(kind, server.get_uri().replace("postgresql://", "postgresql+asyncpg://"), server)
    finally:
        server.ensure_postgres_running()
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
