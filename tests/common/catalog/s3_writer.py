"""A process that stores pictures until all are stored, and tells each that is; again where the store cannot be reached.

usage: s3_writer.py DATABASE_URL ASSETS_URL FIRST COUNT     pictures FIRST to FIRST + COUNT - 1, AT_ONCE at a time
"""

import asyncio
import sys

from common.catalog import AssetStore, AttemptFenced, Catalog, NewImage, NewRun, open_asset_store
from common.errors import Unavailable
from common.logs import configure_logging

AT_ONCE = 16


def picture(number: int) -> bytes:
    """Every third is the same as another one."""
    return b"picture " * 50 + (number - number % 3 // 2).to_bytes(8)


async def main(url: str, assets_url: str, first: int, count: int) -> None:
    # Lines of the log are not what is told.
    configure_logging(level="error", style="json", process="writer")
    catalog, store = await Catalog.open(url), open_asset_store(assets_url)
    numbers = iter(range(first, first + count))

    async def work() -> None:
        for number in numbers:
            while True:
                try:
                    await write(catalog, store, number)
                    break
                except AttemptFenced:
                    break  # done, before this process was started or a commit's answer was lost
                except Unavailable:
                    await asyncio.sleep(0.05)
            print(number, flush=True)

    await asyncio.gather(*(work() for _ in range(AT_ONCE)))


async def write(catalog: Catalog, store: AssetStore, number: int) -> None:
    run_id, content = f"run_{number:05}", picture(number)
    run = NewRun(id=run_id, task="generation", model="m", prompt="p", request={}, request_id="r", source="node", n=1)
    await catalog.runs.open(run)
    no = await catalog.runs.begin_attempt(run_id, node="n")
    sha256, size = await store.put(content), len(content)
    image = NewImage(index=0, sha256=sha256, size_bytes=size, format="png", width_px=8, height_px=8, seed=1)
    await catalog.runs.finish(run_id, no, images=[image], effective={}, timings={}, answer={})


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
