"""One server, as a process of its own, for all tests of a module that only ask."""

from collections.abc import Iterator

import httpx
import pytest

from tests.contract.programs import Server, contract_server
from tests.router.conftest import USER_KEY


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The router before a stand-in node."""
    with contract_server(tmp_path_factory.mktemp("contract")) as started:
        yield started


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    """Holds a user's key."""
    with httpx.Client(base_url=server.url, headers={"authorization": f"Bearer {USER_KEY}"}, timeout=30) as opened:
        yield opened
