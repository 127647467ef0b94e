"""One estate for each kind of database, for all faults."""

import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.faults.campaign import Row, table
from tests.faults.catalogs import catalog_of
from tests.faults.estate import Estate, estate_on


@pytest.fixture(scope="module", autouse=True)
def alone() -> None:
    """What holds within seconds is tried where nothing else takes them: in the gate, or where it was asked for."""
    if os.environ.get("TEST_FAULTS") != "required":
        pytest.skip("TEST_FAULTS=required runs the fault campaign, minutes of real processes, with nothing beside it")


@pytest.fixture(scope="module")
async def estate(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Estate, None]:
    """Everything runs, on the kind of database that the test names."""
    home: Path = tmp_path_factory.mktemp("estate")
    async with AsyncExitStack() as stack:
        database = stack.enter_context(catalog_of(request.param, home))
        yield await stack.enter_async_context(estate_on(home, database))


@pytest.fixture(scope="module")
def rows() -> Iterator[list[Row]]:
    """What was tried; printed at the end."""
    tried: list[Row] = []
    yield tried
    print("\n" + table(tried))
