"""GET /v1/models and /v1/models/{id}: what the nodes serve, under all its names."""

from typing import Any

from fastapi import APIRouter

from common.errors import NotFound
from common.node_api import model_object
from router.auth import UserKey
from router.model_names import Listed
from router.services import ServicesDep

api = APIRouter()


@api.get("/v1/models")
async def list_models(key: UserKey, services: ServicesDep) -> dict[str, Any]:
    """OpenAI's `models.list`."""
    return {"object": "list", "data": [shown(each) for each in await services.names.listed()]}


@api.get("/v1/models/{model_id:path}")
async def retrieve_model(model_id: str, key: UserKey, services: ServicesDep) -> dict[str, Any]:
    """OpenAI's `models.retrieve`; ids may hold slashes and colons."""
    for each in await services.names.listed():
        if each.id == model_id:
            return shown(each)
    raise NotFound(f"The model {model_id!r} does not exist.", param="model", code="model_not_found")


def shown(listed: Listed) -> dict[str, Any]:
    """One entry of the list."""
    return model_object(listed.model, name=listed.id, alias_of=listed.alias_of)
