"""A request on its way to a node: JSON without files, a form with them. The node reads it with the same code as a client's."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from common.images_api.request import ImageRequest, Pieces


def encoded(request: ImageRequest, fields: Mapping[str, Any] | None = None) -> tuple[Sequence[bytes], str]:
    """(the pieces of the body, content type): pictures are megabytes, and stay where they are.

    fields: what `to_json` gives, where that was asked before.
    """
    if fields is None:
        fields = request.to_json()
    if not request.images and not request.control:
        return (orjson.dumps(fields),), "application/json"
    boundary = secrets.token_hex(16)
    parts: list[bytes] = []

    def add(disposition: str, content: Pieces, media_type: str | None = None) -> None:
        head = f"--{boundary}\r\nContent-Disposition: form-data; {disposition}\r\n"
        head += f"Content-Type: {media_type}\r\n" if media_type else ""
        parts.extend((head.encode(), b"\r\n", *content, b"\r\n"))

    for name, value in fields.items():
        # Strings as they are; numbers and booleans in JSON's words, which are those of forms too.
        add(f'name="{name}"', (value.encode() if isinstance(value, str) else orjson.dumps(value),))
    for image in request.images:
        add('name="image[]"; filename="image"', image.pieces, image.format.media_type)
    if request.mask is not None:
        add('name="mask"; filename="mask"', request.mask.pieces, request.mask.format.media_type)
    for control in request.control:
        add('name="control_image[]"; filename="image"', control.image.pieces, control.image.format.media_type)
    parts.append(f"--{boundary}--\r\n".encode())
    return parts, f"multipart/form-data; boundary={boundary}"
