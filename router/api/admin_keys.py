"""/admin/keys: who may call. A key is shown once, when it is made; the catalog keeps its hash."""

from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from common.catalog import KeyRecord
from router.auth import AdminKey
from router.services import ServicesDep

api = APIRouter(prefix="/admin/keys")


class NewKey(BaseModel):
    """Body of POST /admin/keys."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=64)
    scopes: list[Literal["user", "admin"]] = Field(default=["user"], min_length=1)
    expires_in_days: float | None = Field(default=None, gt=0, le=3650)


@api.post("", status_code=201)
async def create_key(new: NewKey, key: AdminKey, services: ServicesDep) -> dict[str, Any]:
    """Make a key. Its secret is in this answer and never again."""
    expires = None if new.expires_in_days is None else datetime.now(UTC) + timedelta(days=new.expires_in_days)
    record, secret = await services.catalog.keys.create(name=new.name, scopes=new.scopes, expires_at=expires)
    return shown(record) | {"key": secret}


@api.get("")
async def list_keys(key: AdminKey, services: ServicesDep) -> dict[str, Any]:
    """All keys, without their secrets."""
    return {"object": "list", "data": [shown(record) for record in await services.catalog.keys.list()]}


@api.delete("/{name}", status_code=204)
async def revoke_key(name: str, key: AdminKey, services: ServicesDep) -> Response:
    """Revoke a key by name or id, at once."""
    await services.catalog.keys.revoke(name)
    return Response(status_code=204)


def shown(record: KeyRecord) -> dict[str, Any]:
    """A key as JSON."""
    return {
        "id": record.id,
        "object": "api_key",
        "name": record.name,
        "prefix": record.prefix,
        "scopes": sorted(record.scopes),
        "created": _unix(record.created_at),
        "expires": _unix(record.expires_at),
        "last_used": _unix(record.last_used_at),
        "revoked": _unix(record.revoked_at),
    }


def _unix(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())
