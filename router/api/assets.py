"""GET /v1/assets/{name}: the bytes behind a signed link. No key: the link is the permission."""

from typing import Any

from fastapi import APIRouter, Response

from common.images_api import OutputFormat
from common.web.shown_pictures import picture_response
from router.services import ServicesDep

api = APIRouter()

_SCHEMA = {"schema": {"type": "string", "format": "binary"}}
PICTURES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The picture.", "content": {each.media_type: _SCHEMA for each in OutputFormat}}
}


@api.head("/v1/assets/{name}", include_in_schema=False)
@api.get("/v1/assets/{name}", response_class=Response, responses=PICTURES)
async def asset(name: str, services: ServicesDep, expires: str = "", signature: str = "") -> Response:
    """The picture; `name` is the image's id and its file ending."""
    return await picture_response(
        name, expires, signature, catalog=services.catalog, assets=services.assets, links=services.links
    )
