"""Who is calling. Every route names what it needs; a test walks all routes and fails for one that names nothing."""

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import APIKeyHeader, HTTPBearer

from common.catalog import KeyRecord
from common.errors import Forbidden, Unauthorized
from common.web.keys import presented_key
from router.services import Services, services_of

# For the OpenAPI document alone: `presented_key` reads both, and says in OpenAI's words what is missing.
_BEARER = Depends(HTTPBearer(auto_error=False, scheme_name="bearer"))
_AZURE = Depends(APIKeyHeader(name="api-key", auto_error=False, scheme_name="api-key"))


async def user_with(secret: str, services: Services) -> KeyRecord:
    """The key with this secret, where no more than a user's is needed. Raises: Unauthorized, Forbidden, CatalogUnavailable."""
    return _allowed_to_use(await _key_with(secret, services))


async def _key_with(secret: str, services: Services) -> KeyRecord:
    key = await services.catalog.keys.authenticate(secret)
    if key is None:
        raise Unauthorized(f"Incorrect API key provided: {_masked(secret)}.", code="invalid_api_key")
    return key


def _allowed_to_use(key: KeyRecord) -> KeyRecord:
    if not {"user", "admin"} & key.scopes:
        raise Forbidden("This route needs an API key with the scope 'user'.")
    return key


async def _key(request: Request, bearer: Annotated[object, _BEARER], azure: Annotated[object, _AZURE]) -> KeyRecord:
    return await _key_with(presented_key(request.scope), services_of(request))


def _masked(secret: str) -> str:
    # Enough to tell one's keys apart, too little to use.
    return f"{secret[:4]}***" if len(secret) >= 16 else "***"


async def _admin(key: Annotated[KeyRecord, Depends(_key)]) -> KeyRecord:
    if "admin" not in key.scopes:
        raise Forbidden("This route needs an API key with the scope 'admin'.")
    return key


async def _user(key: Annotated[KeyRecord, Depends(_key)]) -> KeyRecord:
    return _allowed_to_use(key)


async def _joiner(key: Annotated[KeyRecord, Depends(_key)]) -> KeyRecord:
    if not {"join", "join-approved"} & set(key.scopes):
        raise Forbidden("This route needs an API key with the scope 'join'.")
    return key


UserKey = Annotated[KeyRecord, Depends(_user)]
AdminKey = Annotated[KeyRecord, Depends(_admin)]
JoinKey = Annotated[KeyRecord, Depends(_joiner)]
