"""GET /v1/assets/{name}: the bytes behind a signed link. No key: the link is the permission."""

from fastapi import APIRouter, Response

from common.web.shown_pictures import picture_response
from router.services import ServicesDep

api = APIRouter()


@api.head("/v1/assets/{name}", include_in_schema=False)
@api.get("/v1/assets/{name}")
async def asset(name: str, services: ServicesDep, expires: str = "", signature: str = "") -> Response:
    """The picture; `name` is the image's id and its file ending."""
    return await picture_response(
        name, expires, signature, catalog=services.catalog, assets=services.assets, links=services.links
    )
