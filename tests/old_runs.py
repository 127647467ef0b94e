"""A catalog with runs of long ago, and a store with their pictures."""

import hashlib
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import insert

from common.catalog import open_asset_store
from common.catalog.database import make_engine, parse_url
from common.catalog.records import RunStatus
from common.catalog.tables import Asset, Image, Run, RunTag, Tag

OLD_DAYS = 100.0


@dataclass(frozen=True)
class Old:
    """What a retention of fewer days than theirs must remove."""

    runs: int
    pictures: int
    bytes: int


async def put_down_old_runs(catalog_url: str, assets: Path, count: int, *, name: str = "old") -> Old:
    """`count` runs that ended long ago, one picture each, in rows and in bytes. Every tenth shares its picture with a run of
    today, and the next of each ten has a tag. name: makes their pictures differ from those of another call."""
    now = datetime.now(UTC)
    then = now - timedelta(days=OLD_DAYS)
    contents = [f"picture {number} of {name}".encode() for number in range(count)]
    names = [hashlib.sha256(content).hexdigest() for content in contents]
    ids = [f"run_{name}_{number:06d}" for number in range(count)]
    shared = [(f"{ids[number]}_today", names[number]) for number in range(0, count, 10)]
    images = [(run_id, sha256, then) for run_id, sha256 in zip(ids, names, strict=True)] + [(*each, now) for each in shared]
    engine = make_engine(parse_url(catalog_url))
    try:
        async with engine.begin() as connection:
            tag = (await connection.execute(insert(Tag).values(name=f"dear {name}").returning(Tag.id))).scalar_one()
            sizes = zip(names, contents, strict=True)
            await connection.execute(insert(Asset), [_asset(sha256, len(content), then) for sha256, content in sizes])
            await connection.execute(insert(Run), [_run(run_id, at) for run_id, _, at in images])
            await connection.execute(insert(Image), [_image(*each) for each in images])
            tagged = [{"run_id": ids[number], "tag_id": tag} for number in range(1, count, 10)]
            await connection.execute(insert(RunTag), tagged)
    finally:
        await engine.dispose()
    # After their rows: a router that sweeps meanwhile would remove bytes of such an age without one.
    store = open_asset_store(str(assets))
    for sha256, content in zip(names, contents, strict=True):
        await store.put(content)
        os.utime(assets / sha256[:2] / sha256[2:4] / sha256, (1, 1))
    gone = [content for number, content in enumerate(contents) if number % 10 >= 2]
    return Old(count - len(tagged), len(gone), sum(map(len, gone)))


def _asset(sha256: str, size_bytes: int, at: datetime) -> dict[str, Any]:
    return {
        "sha256": sha256,
        "size_bytes": size_bytes,
        "format": "png",
        "width_px": 64,
        "height_px": 64,
        "created_at": at,
    }


def _image(run_id: str, sha256: str, at: datetime) -> dict[str, Any]:
    return {"id": f"img_{run_id}", "run_id": run_id, "index": 0, "sha256": sha256, "seed": 1, "created_at": at}


def _run(run_id: str, at: datetime) -> dict[str, Any]:
    return {
        "id": run_id,
        "status": RunStatus.SUCCEEDED,
        "task": "generation",
        "model": "m",
        "prompt": "a picture of long ago",
        "request": {},
        "request_id": "req_old",
        "source": "router",
        "n": 1,
        "current_attempt": 0,
        "created_at": at,
        "heartbeat_at": at,
        "finished_at": at,
    }
