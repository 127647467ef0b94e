"""GET /v1/webhooks/secret: what the webhooks of one's own runs are signed with."""

from typing import Any

from fastapi import APIRouter

from router.auth import UserKey
from router.services import ServicesDep

api = APIRouter()


@api.get("/v1/webhooks/secret")
async def webhook_secret(key: UserKey, services: ServicesDep) -> dict[str, Any]:
    """The secret of this API key, as libraries of Standard Webhooks take it."""
    return {"object": "webhook_secret", "secret": services.webhooks.secret_of(key.id)}
