"""GET /v1/assets/{name}: the bytes behind a signed link. No key: the link is the permission."""

import time

from fastapi import APIRouter, Response

from common.errors import NotFound
from common.images_api import OutputFormat
from router.services import ServicesDep

api = APIRouter()

# Pictures come from users' prompts and are shown in browsers: nothing in them may ever run there.
SAFE = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "sandbox; default-src 'none'",
    "cross-origin-resource-policy": "cross-origin",
}


@api.head("/v1/assets/{name}", include_in_schema=False)
@api.get("/v1/assets/{name}")
async def asset(name: str, services: ServicesDep, expires: str = "", signature: str = "") -> Response:
    """The picture; `name` is the image's id and its file ending."""
    now_s = time.time()
    image = await services.catalog.runs.image(services.links.verify(name, expires, signature, now_s=now_s))
    output_format = OutputFormat(image.format)
    if not name.endswith(f".{output_format.extension}"):
        raise NotFound("No image at this address.")
    content = await services.assets.get(image.sha256)
    headers = {
        "cache-control": f"private, max-age={max(0, int(expires) - int(now_s))}, immutable",
        "etag": f'"{image.sha256}"',
        "content-disposition": f'inline; filename="{name}"',
        **SAFE,
    }
    return Response(content, media_type=output_format.media_type, headers=headers)
