"""Assets in S3, or anything that speaks its protocol."""

import os
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import S3Store as Bucket

from common.catalog.assets import AssetFile, checked_hash_of, hash_of, is_sha256, key_of, no_asset
from common.catalog.errors import AssetCorrupt
from common.clock import utc_now
from common.errors import NotFound, StorageFull, Unavailable
from common.settings_sources import read_secret

RENEW_AFTER = timedelta(minutes=5)
"""Bytes put again when they are older than this are written again, so that no sweep takes them for forgotten ones."""
LIST_CHUNK = 1000


class S3Store:
    """An AssetStore."""

    def __init__(self, *, bucket: str, prefix: str = "") -> None:
        self._bucket = Bucket(
            bucket,
            prefix=prefix or None,
            config=_keys_from_files(),
            # http: for stores of one's own, which AWS_ENDPOINT_URL names. AWS itself is always asked by https.
            client_options={"allow_http": True, "connect_timeout": "3s", "timeout": "30s"},
            retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=10)},
        )

    async def put(self, content: bytes, *, sha256: str | None = None) -> str:
        """See AssetStore."""
        name = await checked_hash_of(content, sha256)
        key = key_of(name)
        try:
            try:
                await obstore.put_async(self._bucket, key, content, mode="create")
            except AlreadyExistsError:
                stored = await obstore.head_async(self._bucket, key)
                young = stored["last_modified"] > utc_now() - RENEW_AFTER
                if stored["size"] != len(content) or not young:
                    await obstore.put_async(self._bucket, key, content)
        except (BaseError, OSError) as error:
            raise StorageFull("The asset bucket cannot be written.", retry_after_s=30) from error
        return name

    async def get(self, sha256: str) -> bytes:
        """See AssetStore."""
        key = key_of(sha256)
        try:
            answer = await obstore.get_async(self._bucket, key)
            content = bytes(await answer.bytes_async())
        except FileNotFoundError:
            raise no_asset(sha256) from None
        except (BaseError, OSError) as error:
            raise _unreachable() from error
        if await hash_of(content) != sha256:
            raise AssetCorrupt(sha256)
        return content

    async def stat(self, sha256: str) -> int:
        """See AssetStore."""
        return int((await self._head(sha256))["size"])

    async def delete(self, sha256: str, *, if_older_than: datetime | None = None) -> bool:
        """See AssetStore. S3 cannot look and remove in one step; see the package's decisions."""
        try:
            stored = await self._head(sha256)
        except NotFound:
            return False
        if if_older_than is not None and stored["last_modified"] >= if_older_than:
            return False
        try:
            await obstore.delete_async(self._bucket, key_of(sha256))
        except (BaseError, OSError) as error:
            raise _unreachable() from error
        return True

    async def iterate(self, first: str = "") -> AsyncIterator[AssetFile]:
        """See AssetStore."""
        try:
            async for chunk in obstore.list(self._bucket, prefix=f"{first}/" if first else None, chunk_size=LIST_CHUNK):
                for each in chunk:
                    name = each["path"].rpartition("/")[2]
                    if is_sha256(name):
                        yield AssetFile(name, each["size"], each["last_modified"])
        except (BaseError, OSError) as error:
            raise _unreachable() from error

    async def remove_unfinished(self, *, older_than: datetime) -> int:
        """See AssetStore. S3 shows nothing that is not whole."""
        return 0

    async def close(self) -> None:
        """See AssetStore."""

    async def _head(self, sha256: str) -> Any:
        try:
            return await obstore.head_async(self._bucket, key_of(sha256))
        except FileNotFoundError:
            raise no_asset(sha256) from None
        except (BaseError, OSError) as error:
            raise _unreachable() from error


def _unreachable() -> Unavailable:
    return Unavailable("The asset bucket cannot be reached.", code="asset_store_unavailable", retry_after_s=5)


def _keys_from_files() -> dict[str, str]:
    """AWS's two secrets where they are given as files; as variables obstore finds them itself."""
    named = {"aws_access_key_id": "AWS_ACCESS_KEY_ID", "aws_secret_access_key": "AWS_SECRET_ACCESS_KEY"}
    found = {key: read_secret(name, os.environ) for key, name in named.items() if f"{name}_FILE" in os.environ}
    return {key: value for key, value in found.items() if value is not None}
