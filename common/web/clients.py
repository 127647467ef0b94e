"""Work that is worth nothing once its client has gone."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from common.errors import RunCancelled

T = TypeVar("T")


async def until_client_leaves(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Run `work`; cancel it as soon as the client disconnects. The request's body must have been read before.

    FastAPI does not do this by itself: a handler whose client left runs to its end.
    Raises: RunCancelled: the client left; `work` was cancelled and has ended.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise RunCancelled("The client left before the answer was ready.")
    finally:
        for each in (task, gone):
            each.cancel()
        # Wait for the clean-up of `work`: a cancelled run must be cancelled at the node before this handler ends.
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
