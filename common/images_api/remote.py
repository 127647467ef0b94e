"""Pictures that a JSON edit names by URL.

Off unless an operator lists origins; `common/dialling.py` keeps them from leading into this server's own network.
"""

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx

from common.dialling import NotDialled, UnusableUrl, exchange, listed, parsed
from common.errors import InvalidRequest
from common.image_origins import ImageOrigins
from common.images_api.uploads import MAX_IMAGES, too_large
from common.logs import get_logger
from common.upload_limits import UploadLimits

log = get_logger(__name__)

TIMEOUT_S = 10.0
"""For one picture, from the look-up of its host's name to its last byte."""


async def fetch_named(given: Mapping[str, Any], origins: ImageOrigins, limits: UploadLimits) -> dict[str, bytes]:
    """The content behind each http(s) URL that a JSON edit names in `images` or `mask`.

    Shapes that are wrong in other ways are left to whoever reads the request.
    Raises: InvalidRequest: an origin that is not listed, a picture that cannot be fetched or is too large.
    """
    named = {url: name for name, url in _urls(given)}
    try:
        async with asyncio.TaskGroup() as group:
            tasks = {url: group.create_task(_fetch(name, url, origins, limits)) for url, name in named.items()}
    except ExceptionGroup as refused:
        raise refused.exceptions[0] from None
    return {url: task.result() for url, task in tasks.items()}


def is_remote(url: str) -> bool:
    """Whether a picture has to be fetched."""
    return url[:8].lower().startswith(("http://", "https://"))


def _urls(given: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name for messages, url)"""
    images = given.get("images")
    items = [(f"images[{at}]", item) for at, item in enumerate(images[:MAX_IMAGES])] if isinstance(images, list) else []
    items.append(("mask", given.get("mask")))
    urls = [(name, item.get("image_url")) for name, item in items if isinstance(item, dict)]
    return [(name, url) for name, url in urls if isinstance(url, str) and is_remote(url)]


async def _fetch(name: str, url: str, origins: ImageOrigins, limits: UploadLimits) -> bytes:
    try:
        parts = parsed(url)
    except UnusableUrl as error:
        raise _refused(name, str(error)) from None
    if not listed(parts, origins):
        raise _refused(name, "this server fetches pictures from listed origins only, and this is none of them")
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await _get(name, parts, origins, limits)
    except (TimeoutError, httpx.HTTPError, OSError, NotDialled) as error:
        log.info("image_url_not_fetched", host=parts.host, reason=f"{type(error).__name__}: {error}"[:200])
        raise _refused(name, "the picture could not be fetched") from None


async def _get(name: str, parts: httpx.URL, origins: ImageOrigins, limits: UploadLimits) -> bytes:
    content = bytearray()
    async with exchange("GET", parts, origins, headers={"accept": "image/*"}, timeout_s=TIMEOUT_S) as answer:
        if answer.status_code != 200:
            raise NotDialled(f"it was answered {answer.status_code}")
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise NotDialled("it was answered compressed")
        async for chunk in answer.aiter_raw():
            content += chunk
            if len(content) > limits.max_bytes:
                raise too_large(name, limits)
    return bytes(content)


def _refused(name: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid '{name}.image_url': {why}.", param=f"{name}.image_url", code="invalid_image_url")
