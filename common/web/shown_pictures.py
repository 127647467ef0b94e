"""The bytes behind a signed link, as both processes send them."""

from fastapi import Response

from common.catalog import AssetStore, Catalog
from common.clock import clock
from common.errors import NotFound
from common.images_api import AssetLinks, OutputFormat

# Pictures come from users' prompts and are shown in browsers: nothing in them may ever run there.
SAFE_HEADERS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "sandbox; default-src 'none'",
    "cross-origin-resource-policy": "cross-origin",
}


async def picture_response(
    name: str, expires: str, signature: str, *, catalog: Catalog, assets: AssetStore, links: AssetLinks
) -> Response:
    """The picture of a link. name: the image's id and its file ending.

    Raises: NotFound, Gone: the link is not ours, names another ending, or is over; AssetCorrupt, CatalogUnavailable.
    """
    now_s = clock.now_s()
    image = await catalog.runs.image(links.verify(name, expires, signature, now_s=now_s))
    output_format = OutputFormat(image.format)
    if not name.endswith(f".{output_format.extension}"):
        raise NotFound("No image at this address.")
    headers = {
        "cache-control": f"private, max-age={max(0, int(expires) - int(now_s))}, immutable",
        "etag": f'"{image.sha256}"',
        "content-disposition": f'inline; filename="{name}"',
        **SAFE_HEADERS,
    }
    return Response(await assets.get(image.sha256), media_type=output_format.media_type, headers=headers)
