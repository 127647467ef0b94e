"""What a worker prints: the words of its libraries, and its own about why something failed."""

import asyncio

from common.logs import get_logger

log = get_logger(__name__)


async def log_output(process: asyncio.subprocess.Process) -> None:
    """The child's own words, line by line, into the node's log."""
    assert process.stdout is not None
    while True:
        try:
            line = await process.stdout.readline()
        except ValueError:  # a line beyond the stream's limit; its beginning is dropped
            continue
        if not line:
            return
        if text := line.decode("utf-8", "replace").strip():
            log.info("worker_output", line=text[:500])
