"""What a request is known by when it comes again: the digest of what it says, and of the pictures that came with it."""

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any

import orjson

from common.images_api.request import Upload

AT_ONCE_BYTES = 256 * 1024
"""Of uploads; more are hashed off the event loop: 16 of 4 MiB take some 50 ms."""


async def digest_of(says: Sequence[Any], uploads: Sequence[tuple[str, Upload]]) -> str:
    """In hexadecimal. The order of the fields of what is said does not count.

    uploads: what each is for, and the picture.
    """
    if sum(upload.size_bytes for _, upload in uploads) > AT_ONCE_BYTES:
        return await asyncio.to_thread(_digest, says, uploads)
    return _digest(says, uploads)


def _digest(says: Sequence[Any], uploads: Sequence[tuple[str, Upload]]) -> str:
    digest = hashlib.sha256(orjson.dumps(says, option=orjson.OPT_SORT_KEYS))
    for purpose, upload in uploads:
        digest.update(purpose.encode() + upload.sha256())
    return digest.hexdigest()
