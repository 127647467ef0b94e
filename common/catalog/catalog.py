"""The catalog, opened."""

import asyncio
from typing import Self

from common.catalog.async_runs import AsyncRuns
from common.catalog.costs import Costs
from common.catalog.database import Database, parse_url, sqlite_path
from common.catalog.decisions import Decisions
from common.catalog.encryption import TokenCipher
from common.catalog.errors import SchemaOutdated
from common.catalog.idempotency import Idempotency
from common.catalog.jobs import Jobs
from common.catalog.keys import Keys
from common.catalog.models import Models
from common.catalog.nodes import Nodes
from common.catalog.parts import Parts
from common.catalog.quotas import Quotas
from common.catalog.results import Results
from common.catalog.retention import Retention
from common.catalog.revisions import UPGRADE, require_head
from common.catalog.runs import Runs
from common.catalog.shared_secrets import Secrets
from common.errors import CatalogUnavailable
from common.logs import get_logger

log = get_logger(__name__)

AGREE_EVERY_S = 60.0
"""Crystals of two machines go apart by some milliseconds in this time."""


class Catalog:
    """All that is recorded, by subject. Made by `open`; may be used by all tasks of one event loop."""

    def __init__(self, database: Database, cipher: TokenCipher) -> None:
        self._database = database
        self.runs = Runs(database)
        self.async_runs = AsyncRuns(database)
        self.costs = Costs(database)
        self.decisions = Decisions(database, self.runs)
        self.idempotency = Idempotency(database)
        self.jobs = Jobs(database)
        self.nodes = Nodes(database, cipher)
        self.parts = Parts(database)
        self.results = Results(database)
        self.retention = Retention(database)
        self.keys = Keys(database)
        self.quotas = Quotas(database)
        self.models = Models(database)
        self.secrets = Secrets(database)

    @classmethod
    async def open(cls, url: str, *, secret_key: bytes | None = None) -> Self:
        """Connect and check that the tables are those of this version.

        secret_key: what node tokens are encrypted with; without it they can be neither stored nor read.
        Raises: CatalogUnavailable. SchemaOutdated: `migrate` is needed, or a newer version has migrated.
        InvalidRequest: not the URL of a database this package can use.
        """
        cipher = TokenCipher(secret_key)
        parsed = parse_url(url)
        path = sqlite_path(parsed)
        if path is not None and not path.exists():
            # Connecting would create an empty file, and an empty catalog in the wrong place is hard to notice.
            raise SchemaOutdated(f"There is no catalog in {path} yet. {UPGRADE}")
        database = Database(parsed)
        try:
            require_head(await database.revision())
            await database.agree_on_time()
        except BaseException:
            await database.close()
            raise
        return cls(database, cipher)

    async def keep_time(self) -> None:
        """Agree with the database on the present again and again (common/clock.py), until cancelled."""
        while True:
            await asyncio.sleep(AGREE_EVERY_S)
            try:
                await self._database.agree_on_time()
            except CatalogUnavailable as error:
                log.warning("time_not_agreed", why=error.message)

    async def close(self) -> None:
        """Close all connections. What could not be written until now is lost."""
        try:
            await self.runs.close()
        except CatalogUnavailable as error:
            log.warning("runs_not_recorded", why=error.message)
        finally:
            await self._database.close()

    async def ping(self) -> None:
        """Ask the database something small. Raises: CatalogUnavailable, after 2 s at the latest."""
        await self._database.ping()
