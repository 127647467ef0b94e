"""/admin/aliases: other names for models, such as `dall-e-3` for clients that know no better."""

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field

from common.errors import NotFound, UnknownModel
from router.auth import AdminKey
from router.services import ServicesDep

api = APIRouter(prefix="/admin/aliases")


class Target(BaseModel):
    """Body of PUT /admin/aliases/{alias}."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(min_length=1, max_length=256)


@api.get("")
async def list_aliases(key: AdminKey, services: ServicesDep) -> dict[str, str]:
    """alias -> model."""
    return await services.catalog.models.aliases()


@api.put("/{alias:path}")
async def set_alias(alias: str, target: Target, key: AdminKey, services: ServicesDep) -> dict[str, str]:
    """Point an alias at a model that a node has or had."""
    try:
        model, _ = await services.names.resolve(target.model)
    except UnknownModel as error:
        raise NotFound(error.message, param="model", code="model_not_found") from None
    await services.catalog.models.set_alias(alias, model)
    services.names.forget()
    return {"alias": alias, "model": model}


@api.delete("/{alias:path}", status_code=204)
async def remove_alias(alias: str, key: AdminKey, services: ServicesDep) -> Response:
    """Remove an alias."""
    await services.catalog.models.remove_alias(alias)
    services.names.forget()
    return Response(status_code=204)
