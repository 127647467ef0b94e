"""Who is calling: a router or operator with the node's token, or a client with an API key of the catalog.

The token opens everything, and only with it are the headers believed by which a router hands over a run of its own.
A key opens `/v1` only. Signed links, health and metrics need neither.
"""

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from common.errors import Forbidden, Unauthorized
from common.web.keys import presented_key
from node.services import services_of


@dataclass(frozen=True, slots=True)
class Caller:
    """Someone who may be here."""

    trusted: bool
    """Whether it holds the node's token."""
    key_id: str | None = None
    """The API key it came with."""


def _has_token(request: Request, secret: str) -> bool:
    return services_of(request).tokens.opened_by(secret)


async def _caller(request: Request) -> Caller:
    secret = presented_key(request.scope)
    if _has_token(request, secret):
        return Caller(trusted=True)
    key = await services_of(request).catalog.keys.authenticate(secret)
    if key is None:
        raise Unauthorized("Incorrect API key provided.", code="invalid_api_key")
    if not {"user", "admin"} & set(key.scopes):
        raise Forbidden("This route needs an API key with the scope 'user'.")
    return Caller(trusted=False, key_id=key.id)


def _operator(request: Request) -> Caller:
    if not _has_token(request, presented_key(request.scope)):
        raise Unauthorized("This route needs the node's token.", code="invalid_api_key")
    return Caller(trusted=True)


CallerDep = Annotated[Caller, Depends(_caller)]
OperatorDep = Annotated[Caller, Depends(_operator)]
