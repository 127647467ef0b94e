"""Who is calling. Every route names what it needs; a test walks all routes and fails for one that names nothing."""

from typing import Annotated

from fastapi import Depends, Request

from common.catalog import KeyRecord
from common.errors import Forbidden, Unauthorized
from router.services import Services, services_of

NO_KEY = (
    "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth "
    "(i.e. Authorization: Bearer YOUR_KEY)."
)


async def _key(request: Request) -> KeyRecord:
    services: Services = services_of(request)
    secret = _presented(request)
    if secret is None:
        raise Unauthorized(NO_KEY)
    key = await services.catalog.keys.authenticate(secret)
    if key is None:
        raise Unauthorized(f"Incorrect API key provided: {_masked(secret)}.", code="invalid_api_key")
    return key


def _presented(request: Request) -> str | None:
    """The key of a Bearer header, or of Azure-style clients' `api-key` header."""
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credentials.strip():
        return credentials.strip()
    return request.headers.get("api-key") or None


def _masked(secret: str) -> str:
    # Enough to tell one's keys apart, too little to use.
    return f"{secret[:4]}***" if len(secret) >= 16 else "***"


async def _admin(key: Annotated[KeyRecord, Depends(_key)]) -> KeyRecord:
    if "admin" not in key.scopes:
        raise Forbidden("This route needs an API key with the scope 'admin'.")
    return key


async def _user(key: Annotated[KeyRecord, Depends(_key)]) -> KeyRecord:
    if not {"user", "admin"} & set(key.scopes):
        raise Forbidden("This route needs an API key with the scope 'user'.")
    return key


UserKey = Annotated[KeyRecord, Depends(_user)]
AdminKey = Annotated[KeyRecord, Depends(_admin)]
