"""/admin/keys: who may call; /admin/usage: how much each did. A key is shown once, when made; the catalog keeps its hash."""

from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from common.catalog import KeyRecord, Limits
from common.clock import utc_now
from router.auth import AdminKey
from router.services import ServicesDep
from router.wishes import MAX_DEADLINE_S

api = APIRouter(prefix="/admin")


class KeyLimits(BaseModel):
    """What a key may do; what is absent or null has no limit."""

    model_config = ConfigDict(extra="forbid")

    requests_per_minute: int | None = Field(default=None, ge=1, le=1_000_000)
    images_per_day: int | None = Field(default=None, ge=1, le=1_000_000_000)
    gpu_seconds_per_day: float | None = Field(default=None, gt=0, le=1e9)
    max_in_flight: int | None = Field(default=None, ge=1, le=1_000_000)
    priority: Literal["high", "normal", "low"] | None = None
    """The highest that its requests may ask for; normal when absent."""
    deadline_s: float | None = Field(default=None, gt=0, le=MAX_DEADLINE_S)
    """Of requests that name none."""

    def record(self) -> Limits:
        """As the catalog takes them."""
        return Limits(**self.model_dump())


class NewKey(BaseModel):
    """Body of POST /admin/keys."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=64)
    scopes: list[Literal["user", "admin", "join", "join-approved"]] = Field(default=["user"], min_length=1)
    expires_in_days: float | None = Field(default=None, gt=0, le=3650)
    limits: KeyLimits = Field(default_factory=KeyLimits)


@api.post("/keys", status_code=201)
async def create_key(new: NewKey, key: AdminKey, services: ServicesDep) -> dict[str, Any]:
    """Make a key. Its secret is in this answer and never again."""
    expires = None if new.expires_in_days is None else utc_now() + timedelta(days=new.expires_in_days)
    record, secret = await services.catalog.keys.create(
        name=new.name, scopes=new.scopes, expires_at=expires, limits=new.limits.record()
    )
    return shown(record) | {"key": secret}


@api.get("/keys")
async def list_keys(key: AdminKey, services: ServicesDep) -> dict[str, Any]:
    """All keys, without their secrets."""
    return {"object": "list", "data": [shown(record) for record in await services.catalog.keys.list()]}


@api.get("/usage")
async def usage(key: AdminKey, services: ServicesDep, days: Annotated[int, Query(ge=1, le=366)] = 30) -> dict[str, Any]:
    """What each key used on each of the last days (UTC): runs that succeeded, their pictures, their GPU-seconds."""
    since = (utc_now() - timedelta(days=days - 1)).date().isoformat()
    names = {record.id: record.name for record in await services.catalog.keys.list()}
    rows = [
        {
            "object": "usage",
            "day": row.day,
            "key_id": row.key_id,
            "key": names.get(row.key_id),
            "runs": row.runs,
            "images": row.images,
            "gpu_seconds": round(row.gpu_s, 3),
        }
        for row in await services.catalog.quotas.usage(since=since)
    ]
    return {"object": "list", "data": rows}


@api.put("/keys/{name}/limits")
async def limit_key(name: str, limits: KeyLimits, key: AdminKey, services: ServicesDep) -> dict[str, Any]:
    """Replace the limits of a key, by name or id."""
    return shown(await services.catalog.keys.limit(name, limits.record()))


@api.delete("/keys/{name}", status_code=204)
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
        "limits": asdict(record.limits),
    }


def _unix(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())
