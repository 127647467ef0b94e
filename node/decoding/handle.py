"""The node's side of the decoding child."""

import asyncio
import os
import sys

from PIL import Image

from common.images_api import Upload
from common.images_api.uploads import broken
from common.logs import get_logger
from node.worker.frames import Frame, FrameError, read_frame

log = get_logger(__name__)

AT_ONCE = 2
"""Children at one time: a burst of uploads must not take the cores from the device."""
MEMORY_BYTES = 1024 * 1024 * 1024
"""Address space of a child: Python with Pillow maps 0.2 GB, the largest picture by default takes 64 MB twice over."""
TIMEOUT_S = 5


class Decoder:
    """Decodes uploads, a few at a time."""

    def __init__(self, *, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._places = asyncio.Semaphore(AT_ONCE)

    async def decode(self, upload: Upload) -> Image.Image:
        """The first picture of a file, upright, RGB or RGBA, without any metadata.

        Raises: UserImageError: it cannot be decoded within the child's memory and time.
        """
        async with self._places:
            output = await self._run(upload)
        if output is None:
            raise broken(upload.name)
        header = output.header
        return Image.frombytes(header["mode"], tuple(header["size"]), output.blobs[0])

    async def _run(self, upload: Upload) -> Frame | None:
        arguments = [str(self._max_pixels), str(MEMORY_BYTES), str(TIMEOUT_S)]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "node.decoding"),
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        try:
            async with asyncio.timeout(2 * TIMEOUT_S):
                output, _ = await process.communicate(upload.content)
        except TimeoutError:
            output = b""
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode or not output:
            log.info("upload_not_decoded", format=str(upload.format), exit_code=process.returncode)
            return None
        return _frame(output)


def _frame(output: bytes) -> Frame | None:
    position = 0

    def read(size: int) -> bytes:
        nonlocal position
        position += size
        if position > len(output):
            raise FrameError("a frame that ends too soon")
        return output[position - size : position]

    try:
        return read_frame(read)
    except FrameError as error:
        log.warning("decoder_nonsense", why=str(error))
        return None
