"""One estate of each kind, for all faults."""

import os
from collections.abc import AsyncGenerator, Iterator

import pytest

from tests.faults.campaign import Row, table
from tests.faults.estate import Estate
from tests.faults.kinds import estate_of


@pytest.fixture(scope="module", autouse=True)
def alone() -> None:
    """What holds within seconds is tried where nothing else takes them: in the gate, or where it was asked for."""
    if os.environ.get("TEST_FAULTS") != "required":
        pytest.skip("TEST_FAULTS=required runs the fault campaign, minutes of real processes, with nothing beside it")


@pytest.fixture(scope="module")
async def estate(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Estate, None]:
    """Everything runs, in an estate of the kind that the test names."""
    async with estate_of(request.param, tmp_path_factory.mktemp("estate")) as estate:
        yield estate


@pytest.fixture(scope="module")
def rows() -> Iterator[list[Row]]:
    """What was tried; printed at the end."""
    tried: list[Row] = []
    yield tried
    print("\n" + table(tried))
