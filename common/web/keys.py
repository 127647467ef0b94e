"""The secret a request comes with, wherever its client puts it."""

from starlette.types import Scope

from common.errors import Unauthorized
from common.web.headers import headers_of

NO_KEY = (
    "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth "
    "(i.e. Authorization: Bearer YOUR_KEY)."
)


def presented_key(scope: Scope) -> str:
    """The key of a Bearer header, or of Azure-style clients' `api-key` header.

    Raises: Unauthorized: neither is there.
    """
    headers = headers_of(scope)
    scheme, _, credentials = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    bearer = credentials.strip() if scheme.lower() == "bearer" else ""
    secret = bearer or headers.get(b"api-key", b"").decode("latin-1")
    if not secret:
        raise Unauthorized(NO_KEY)
    return secret
