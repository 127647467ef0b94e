"""The bytes of pictures: write-once, checked when read, whole or not there."""

import asyncio
import hashlib
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import obstore
import pytest
from obstore.store import S3Store as Bucket

from common.catalog import AssetCorrupt, AssetFile, AssetStore, open_asset_store
from common.errors import InvalidRequest, NotFound, StorageFull, Unavailable

PICTURE = b"\x89PNG and what follows" * 1000
SHA256 = hashlib.sha256(PICTURE).hexdigest()


@pytest.fixture(params=["folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> AssetStore:
    """An empty store of each kind."""
    return open_asset_store(str(tmp_path / "assets") if request.param == "folder" else request.getfixturevalue("s3_url"))


async def found(store: AssetStore) -> list[AssetFile]:
    return [file async for file in store.iterate()]


async def test_what_is_stored_can_be_read_by_its_sha256(store: AssetStore):
    assert await found(store) == []

    assert await store.put(PICTURE) == SHA256
    assert await store.put(PICTURE, sha256=SHA256) == SHA256

    assert await store.get(SHA256) == PICTURE
    assert await store.stat(SHA256) == len(PICTURE)
    [file] = await found(store)
    assert (file.sha256, file.size_bytes) == (SHA256, len(PICTURE))
    assert abs(file.modified_at - datetime.now(UTC)) < timedelta(minutes=1)


async def test_the_same_picture_may_be_stored_by_many_at_once(store: AssetStore):
    assert set(await asyncio.gather(*(store.put(PICTURE) for _ in range(8)))) == {SHA256}
    assert await store.get(SHA256) == PICTURE


async def test_what_is_not_stored_is_not_found(store: AssetStore):
    for asking in (store.get(SHA256), store.stat(SHA256)):
        with pytest.raises(NotFound):
            await asking
    assert await store.delete(SHA256) is False


async def test_bytes_that_are_not_what_the_caller_says_are_refused(store: AssetStore):
    with pytest.raises(AssetCorrupt):
        await store.put(b"other", sha256=SHA256)
    assert await found(store) == []


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "ab" * 31 + "/x", "AB" * 32, "ab" * 32 + "\n", "ab" * 33])
async def test_no_path_is_smuggled_in_as_a_sha256(name: str, store: AssetStore):
    for asking in (store.get(name), store.stat(name), store.delete(name), store.put(PICTURE, sha256=name)):
        with pytest.raises(InvalidRequest):
            await asking


async def test_bytes_are_removed_only_when_older_than_asked(store: AssetStore):
    await store.put(PICTURE)
    now = datetime.now(UTC)

    assert await store.delete(SHA256, if_older_than=now - timedelta(minutes=5)) is False
    assert await store.get(SHA256) == PICTURE
    assert await store.delete(SHA256, if_older_than=now + timedelta(minutes=5)) is True
    with pytest.raises(NotFound):
        await store.get(SHA256)
    assert await found(store) == []


async def test_damaged_bytes_are_noticed_and_healed_by_storing_them_again(tmp_path: Path):
    store = open_asset_store((tmp_path / "assets").as_uri())
    await store.put(PICTURE)
    path = tmp_path / "assets" / SHA256[:2] / SHA256[2:4] / SHA256
    path.write_bytes(PICTURE[:-1] + b"?")

    with pytest.raises(AssetCorrupt) as caught:
        await store.get(SHA256)
    assert (caught.value.status, caught.value.retryable) == (500, False)
    await store.put(PICTURE)

    assert await store.get(SHA256) == PICTURE


async def test_damaged_bytes_in_a_bucket_are_noticed(s3_url: str):
    store = open_asset_store(s3_url)
    await store.put(PICTURE)
    bucket = Bucket.from_url(s3_url, client_options={"allow_http": True})
    await obstore.put_async(bucket, f"{SHA256[:2]}/{SHA256[2:4]}/{SHA256}", PICTURE[:-1] + b"?")

    with pytest.raises(AssetCorrupt):
        await store.get(SHA256)


async def test_storing_bytes_again_makes_them_young(tmp_path: Path):
    store = open_asset_store(str(tmp_path))
    await store.put(PICTURE)
    os.utime(tmp_path / SHA256[:2] / SHA256[2:4] / SHA256, (1, 1))

    await store.put(PICTURE)

    assert await store.delete(SHA256, if_older_than=datetime.now(UTC) - timedelta(minutes=5)) is False


async def test_what_a_crash_left_unfinished_is_removed_when_old(tmp_path: Path):
    store = open_asset_store(str(tmp_path))
    await store.put(PICTURE)
    unfinished = tmp_path / SHA256[:2] / SHA256[2:4] / ".unfinished-1"
    unfinished.write_bytes(b"half")

    assert await store.remove_unfinished(older_than=datetime.now(UTC) - timedelta(minutes=5)) == 0
    assert await store.remove_unfinished(older_than=datetime.now(UTC) + timedelta(minutes=5)) == 1
    assert [file.sha256 for file in await found(store)] == [SHA256]
    assert not unfinished.exists()


FULL_DISK = """
import asyncio, resource, sys
from common.catalog import open_asset_store
from common.errors import StorageFull
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
store = open_asset_store(sys.argv[1])
try:
    asyncio.run(store.put(bytes(5000)))
except StorageFull as error:
    print("StorageFull", error.status)
"""


def test_a_full_disk_is_told_and_leaves_no_partial_file(tmp_path: Path, child_environment: dict[str, str]):
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "assets")]

    said = subprocess.check_output(command, env=child_environment, text=True, timeout=60)

    assert said == "StorageFull 503\n"
    assert [path for path in (tmp_path / "assets").rglob("*") if path.is_file()] == []


async def test_a_place_that_cannot_hold_assets_is_storage_full():
    with pytest.raises(StorageFull):
        await open_asset_store("/dev/null/assets").put(PICTURE)


async def test_a_bucket_that_cannot_be_reached_is_unavailable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    store = open_asset_store("s3://bucket")

    with pytest.raises(StorageFull):
        await store.put(PICTURE)
    for asking in (store.get(SHA256), store.stat(SHA256), store.delete(SHA256), found(store)):
        with pytest.raises(Unavailable):
            await asking


@pytest.mark.parametrize("url", ["", "s3://", "gs://bucket", "https://host/folder", "file://other-host/folder"])
def test_only_folders_and_buckets_hold_assets(url: str):
    with pytest.raises(InvalidRequest):
        open_asset_store(url)
