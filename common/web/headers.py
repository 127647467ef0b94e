"""The headers of a request, found by their names."""

from collections.abc import Mapping

from starlette.types import Scope

_KEPT = "aquatint.headers"

Headers = Mapping[bytes, bytes]
"""As ASGI has them: names in small letters; bytes, which are Latin-1."""


def headers_of(scope: Scope) -> Headers:
    """Of several under one name the first. Sorted once a request, and kept in its scope: Starlette goes through all of them
    each time that one is asked for."""
    kept: Headers | None = scope.get(_KEPT)
    if kept is None:
        kept = scope[_KEPT] = dict(reversed(scope["headers"]))
    return kept
