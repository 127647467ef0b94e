"""A process that writes runs into a catalog and says, after each commit, what it was told is stored.

usage: writer.py URL PROCESSES COUNT (0: until it is killed)
"""

import asyncio
import itertools
import os
import sys

from common.catalog import Catalog, NewImage, NewRun, new_id


async def main(url: str, name: str, count: int) -> None:
    catalog = await Catalog.open(url)
    for number in range(count) if count else itertools.count():
        run_id = new_id("run")
        run = NewRun(id=run_id, task="generation", model="m", prompt=name, request={}, request_id="r", source="node", n=4)
        await catalog.runs.open(run)
        no = await catalog.runs.begin_attempt(run_id, node=name)
        images = [
            NewImage(
                index=index,
                sha256=f"{number:032x}{index:032x}",
                size_bytes=1,
                format="png",
                width_px=64,
                height_px=64,
                seed=index,
            )
            for index in range(4)
        ]
        await catalog.runs.finish(run_id, no, images=images, effective={}, timings={}, answer={})
        print(run_id, flush=True)
    await catalog.close()


# The first of them is this process; the others are copies of it, which saves them the imports.
children = []
for _ in range(int(sys.argv[2]) - 1):
    if (child := os.fork()) == 0:
        children.clear()
        break
    children.append(child)
asyncio.run(main(sys.argv[1], f"process {os.getpid()}", int(sys.argv[3])))
if any(os.waitpid(child, 0)[1] for child in children):
    sys.exit("a child failed")
