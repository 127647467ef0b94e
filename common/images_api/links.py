"""Signed, expiring links to the bytes of an image.

A link is `{base}/v1/assets/{image id}.{ending}?expires=...&signature=...`. The signature is an HMAC over id, ending
and time, so a link needs no login, cannot be guessed or prolonged, and any process that shares the catalog can check it.
"""

import hashlib
import hmac
from urllib.parse import quote

from common.errors import Gone, NotFound
from common.images_api.request import OutputFormat

LIFETIME_S = 3600
"""OpenAI's own urls live for 60 minutes."""

SECRET_NAME = "asset-links"
"""Name of the signing secret in the catalog."""


class AssetLinks:
    """Makes and checks links with one secret."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()

    def sign(
        self, base_url: str, image_id: str, output_format: OutputFormat, *, now_s: float, lifetime_s: float = LIFETIME_S
    ) -> str:
        """An absolute link under `base_url` (scheme, host and port, perhaps a path), good until now + lifetime."""
        name, expires = f"{image_id}.{output_format.extension}", str(int(now_s + lifetime_s))
        signature = self._signature(name, expires)
        return f"{base_url.rstrip('/')}/v1/assets/{quote(name)}?expires={expires}&signature={signature}"

    def verify(self, name: str, expires: str, signature: str, *, now_s: float) -> str:
        """The image id in a link's file name.

        Raises: NotFound: the signature is not ours (an existing image and none look alike); Gone: it was, but is over.
        """
        if not hmac.compare_digest(self._signature(name, expires).encode(), signature.encode("utf-8", "replace")):
            raise NotFound("No image at this address.")
        if now_s > int(expires):
            raise Gone("This link has expired.")
        return name.rpartition(".")[0]

    def _signature(self, name: str, expires: str) -> str:
        return hmac.new(self._secret, f"{name}\n{expires}".encode(), hashlib.sha256).hexdigest()
