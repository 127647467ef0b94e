"""The secret a request comes with, wherever its client puts it."""

from starlette.requests import Request

from common.errors import Unauthorized

NO_KEY = (
    "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth "
    "(i.e. Authorization: Bearer YOUR_KEY)."
)


def presented_key(request: Request) -> str:
    """The key of a Bearer header, or of Azure-style clients' `api-key` header.

    Raises: Unauthorized: neither is there.
    """
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    bearer = credentials.strip() if scheme.lower() == "bearer" else ""
    secret = bearer or request.headers.get("api-key", "")
    if not secret:
        raise Unauthorized(NO_KEY)
    return secret
