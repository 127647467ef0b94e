"""The kinds of estates that faults are tried on."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from tests.faults.catalogs import catalog_of
from tests.faults.estate import Estate, estate_on
from tests.faults.real import real_estate_on

KINDS = ("sqlite", "postgres", "real")
"""Stand-ins for nodes, with the catalog in SQLite or PostgreSQL; real nodes, with PostgreSQL."""


@asynccontextmanager
async def estate_of(kind: str, home: Path) -> AsyncIterator[Estate]:
    """A new one, in which everything runs. home: an empty folder."""
    with catalog_of("sqlite" if kind == "sqlite" else "postgres", home) as catalog:
        async with real_estate_on(catalog) if kind == "real" else estate_on(home, catalog) as estate:
            yield estate
