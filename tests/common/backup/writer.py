"""A process that makes runs with pictures in a catalog until it is killed, and tells each that is stored.

usage: writer.py DATABASE_URL ASSETS_URL
"""

import asyncio
import itertools
import os
import sys

from common.catalog import Catalog, NewImage, NewRun, new_id, open_asset_store


async def main(url: str, assets_url: str) -> None:
    catalog, store = await Catalog.open(url), open_asset_store(assets_url)
    for number in itertools.count():
        run_id = new_id("run")
        run = NewRun(id=run_id, task="generation", model="m", prompt=f"ö {number}", request={}, request_id="r", source="node")
        await catalog.runs.open(run)
        no = await catalog.runs.begin_attempt(run_id, node="n")
        content = number.to_bytes(8) + os.urandom(2000)
        image = NewImage(
            index=0,
            sha256=await store.put(content),
            size_bytes=len(content),
            format="png",
            width_px=64,
            height_px=64,
            seed=2**40 + number,
        )
        await catalog.runs.finish(
            run_id,
            no,
            images=[image],
            effective={"b": 1.5, "a": [1, None, "ü"]},
            timings={"denoise": 0.25},
            answer={"created": number},
        )
        print(run_id, flush=True)


asyncio.run(main(*sys.argv[1:]))
