"""A process that stores pictures until all are stored, and tells each that is; again where the store cannot be reached.

usage: s3_writer.py DATABASE_URL ASSETS_URL FIRST COUNT     pictures FIRST to FIRST + COUNT - 1, AT_ONCE at a time
"""

import asyncio
import sys

from common.catalog import AttemptFenced, Catalog, NewImage, NewRun, open_asset_store
from common.errors import Unavailable

AT_ONCE = 16


def picture(number: int) -> bytes:
    """Every third is the same as another one."""
    return b"picture " * 50 + (number - number % 3 // 2).to_bytes(8)


async def main(url: str, assets_url: str, first: int, count: int) -> None:
    catalog, store = await Catalog.open(url), open_asset_store(assets_url)
    numbers = iter(range(first, first + count))

    async def work() -> None:
        for number in numbers:
            run_id, content = f"run_{number:05}", picture(number)
            run = NewRun(id=run_id, task="generation", model="m", prompt="p", request={}, request_id="r", source="node", n=1)
            await catalog.runs.open(run)
            try:
                no = await catalog.runs.begin_attempt(run_id, node="n")
            except AttemptFenced:
                continue  # done before this process was killed
            while True:
                try:
                    sha256 = await store.put(content)
                    break
                except Unavailable:
                    await asyncio.sleep(0.05)
            size = len(content)
            image = NewImage(index=0, sha256=sha256, size_bytes=size, format="png", width_px=8, height_px=8, seed=1)
            await catalog.runs.finish(run_id, no, images=[image], effective={}, timings={}, answer={})
            print(number, flush=True)

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
