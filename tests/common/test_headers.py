"""Headers of a request by their names."""

from typing import Any

import pytest
from starlette.requests import Request

from common.errors import Unauthorized
from common.web.headers import headers_of
from common.web.keys import presented_key


def scope(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http", "headers": list(headers)}


def test_of_several_under_one_name_the_first_counts_as_it_does_for_starlette():
    twice = scope((b"host", b"a"), (b"prefer", b"one"), (b"prefer", b"other"))

    assert headers_of(twice) == {b"host": b"a", b"prefer": b"one"}
    assert Request(twice).headers["prefer"] == "one"


def test_they_are_sorted_once_a_request():
    request = scope((b"host", b"a"))

    assert headers_of(request) is headers_of(request)
    assert headers_of(scope()) == {}


@pytest.mark.parametrize(
    "headers",
    [
        [(b"authorization", b"Bearer one")],
        [(b"authorization", b"bearer   one ")],
        [(b"api-key", b"one")],
        [(b"authorization", b"Basic other"), (b"api-key", b"one")],
        [(b"authorization", b"Bearer "), (b"api-key", b"one")],
        [(b"authorization", b"Bearer one"), (b"api-key", b"other")],
    ],
)
def test_a_key_is_found_wherever_its_client_puts_it(headers: list[tuple[bytes, bytes]]):
    assert presented_key(scope(*headers)) == "one"


@pytest.mark.parametrize("headers", [[], [(b"authorization", b"one")], [(b"authorization", b"Bearer")], [(b"api-key", b"")]])
def test_no_key_is_told_so(headers: list[tuple[bytes, bytes]]):
    with pytest.raises(Unauthorized, match="You didn't provide an API key"):
        presented_key(scope(*headers))
