"""Answers as server-sent events: previews while a picture is made, then the picture."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response
from starlette.responses import StreamingResponse

from common.clock import clock
from common.errors import AquatintError
from common.images_api import ImageRequest, events
from common.images_api.sniff import sniff
from common.node_api import RUN_ID_HEADER
from common.web import until_client_leaves
from common.web.background import ended
from common.web.errors import unexpected
from node.recorder import Sender
from node.runs import Answer, Runs


@dataclass(frozen=True, slots=True)
class _Preview:
    index: int
    content: bytes


def told(answer: Answer) -> dict[str, str]:
    """Headers of an answer."""
    headers = {RUN_ID_HEADER: answer.run_id, "x-image-seeds": ",".join(map(str, answer.seeds))}
    if answer.ignored:
        headers["x-ignored-params"] = ",".join(answer.ignored)
    return headers


async def streamed(asked: ImageRequest, sender: Sender, request: Request, runs: Runs) -> Response:
    """The answer in events. It begins with the first of them: until then an error is an ordinary answer."""
    previews: asyncio.Queue[_Preview] = asyncio.Queue()
    making = asyncio.create_task(runs.make(asked, sender, lambda index, content: previews.put_nowait(_Preview(index, content))))
    try:
        first = await until_client_leaves(request, _next(previews, making))
    except BaseException:
        await ended(making)
        raise
    headers = {**events.HEADERS} | (told(making.result()) if first is None else {})
    return StreamingResponse(_events(asked, first, previews, making), headers=headers)


async def _events(
    asked: ImageRequest, first: _Preview | None, previews: asyncio.Queue[_Preview], making: asyncio.Task[Answer]
) -> AsyncIterator[bytes]:
    created_s = int(clock.now_s())
    try:
        preview = first
        while preview is not None:
            yield events.partial_image(asked.task, preview.content, preview.index, _head(asked, preview, created_s))
            waiting = asyncio.ensure_future(_next(previews, making))
            while not waiting.done():
                await asyncio.wait({waiting}, timeout=events.KEEP_ALIVE_EVERY_S)
                if not waiting.done():
                    yield events.KEEP_ALIVE
            preview = waiting.result()
        answer = making.result()
        picture = answer.pictures[0]
        assert picture.content is not None
        last = events.completed_head(answer.head, picture.seed, picture.asset_id)
        yield events.completed(asked.task, picture.content, last)
    except AquatintError as error:
        yield events.failed(error)
    except Exception as error:
        yield events.failed(unexpected(error))
    finally:
        # The client left, or all is said.
        await ended(making)


def _head(asked: ImageRequest, preview: _Preview, created_s: int) -> dict[str, Any]:
    header = sniff(preview.content)
    assert header is not None
    return {
        "created_at": created_s,
        "written_at": clock.now_s(),
        "size": f"{header.width_px}x{header.height_px}",
        "quality": str(asked.quality),
        "background": "opaque",
        "output_format": str(asked.output_format),
    }


async def _next(previews: asyncio.Queue[_Preview], making: asyncio.Task[Answer]) -> _Preview | None:
    """The next preview; None when the picture is done. Raises what the run raised."""
    getting = asyncio.ensure_future(previews.get())
    try:
        await asyncio.wait({getting, making}, return_when=asyncio.FIRST_COMPLETED)
        if getting.done():
            return getting.result()
        making.result()
        return None
    finally:
        getting.cancel()
