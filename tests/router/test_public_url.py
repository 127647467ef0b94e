"""Where links of an answer lead, when no address is configured."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from fastapi import Request

from router.services import Services, public_url

UNCONFIGURED = cast(Services, SimpleNamespace(settings=SimpleNamespace(public_url=None)))


@pytest.mark.parametrize(
    ("host", "server", "expected"),
    [
        (b"pictures.example:8443", ("10.0.0.1", 8000), "https://pictures.example:8443"),
        (b"[::1]:8000", ("10.0.0.1", 8000), "https://[::1]:8000"),
        (b"no host at all", ("10.0.0.1", 8000), "https://10.0.0.1:8000"),
        (None, ["10.0.0.1", 443], "https://10.0.0.1"),
        (b"pictures.example", None, "https://pictures.example"),
    ],
)
def test_links_begin_with_the_address_that_the_client_called(host: bytes | None, server: Any, expected: str):
    headers = [] if host is None else [(b"host", host)]
    scope = {"type": "http", "scheme": "https", "server": server, "path": "/v1", "headers": headers, "query_string": b"a=b"}

    assert public_url(Request(scope), UNCONFIGURED) == expected
