"""What a crash leaves behind is put right, and nothing else is touched."""

import asyncio
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from common.catalog import Catalog, NewImage, NewRun, RunStatus, open_asset_store
from common.catalog.sweeper import sweep
from common.errors import NotFound

HOUR_S = 3600.0


def grow_old(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, (1, 1))


async def test_a_sweep_closes_what_a_crash_left_open_and_removes_bytes_without_a_row(
    catalog: Catalog, new_run: Callable[..., NewRun], new_image: Callable[..., NewImage], result: dict[str, Any], tmp_path: Path
):
    assets = open_asset_store(str(tmp_path / "assets"))
    kept, forgotten, young = [f"picture {name}".encode() for name in ("kept", "forgotten", "young")]
    kept_sha256 = await assets.put(kept)
    forgotten_sha256 = await assets.put(forgotten)
    grow_old(tmp_path / "assets")
    young_sha256 = await assets.put(young)
    done, dead = new_run(), new_run()
    for run in (done, dead):
        await catalog.runs.open(run)
    no = await catalog.runs.begin_attempt(done.id, node="left")
    await catalog.runs.finish(done.id, no, **result | {"images": [new_image(sha256=kept_sha256)]})

    report = await sweep(catalog, assets, run_timeout_s=-1, grace_s=HOUR_S)
    again = await sweep(catalog, assets, run_timeout_s=-1, grace_s=HOUR_S)

    assert report.runs_closed == (dead.id,)
    assert (report.assets_removed, report.removed_bytes) == (1, len(forgotten))
    assert (again.runs_closed, again.assets_removed) == ((), 0)
    assert await assets.get(kept_sha256) == kept
    assert await assets.get(young_sha256) == young
    with pytest.raises(NotFound):
        await assets.get(forgotten_sha256)
    assert (await catalog.runs.get(done.id)).status is RunStatus.SUCCEEDED


async def test_a_sweep_never_removes_the_picture_of_a_run_that_finishes_meanwhile(
    catalog: Catalog, new_run: Callable[..., NewRun], new_image: Callable[..., NewImage], result: dict[str, Any], tmp_path: Path
):
    assets = open_asset_store(str(tmp_path))
    pictures = [f"picture {number}".encode() for number in range(20)]
    for picture in pictures:
        await assets.put(picture)
    # Old bytes without a row: leftovers of runs that crashed, of which each is now made once more.
    grow_old(tmp_path)

    async def make_again(picture: bytes) -> None:
        run = new_run()
        await catalog.runs.open(run)
        no = await catalog.runs.begin_attempt(run.id, node="left")
        sha256 = await assets.put(picture)
        await catalog.runs.finish(run.id, no, **result | {"images": [new_image(sha256=sha256)]})

    async def keep_sweeping() -> None:
        for _ in range(10):
            await sweep(catalog, assets, run_timeout_s=HOUR_S, grace_s=HOUR_S)

    await asyncio.gather(keep_sweeping(), *(make_again(picture) for picture in pictures))

    for picture in pictures:
        assert await assets.get(hashlib.sha256(picture).hexdigest()) == picture
