"""Work that is worth nothing once its client has gone."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive

from common.errors import RunCancelled

T = TypeVar("T")


async def until_client_leaves(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Run `work` as `while_client_stays` does."""
    async with while_client_stays(request.receive):
        return await work


@asynccontextmanager
async def while_client_stays(receive: Receive) -> AsyncIterator[None]:
    """Cancel the block as soon as the client disconnects. The request's body must have been read before; and where the block
    sends the answer, its last part is the last thing that the block waits for, as a server tells of it as of a disconnect.

    FastAPI does not do this by itself: a handler whose client left runs to its end.
    Raises: RunCancelled: the client left; the block was cancelled and has ended.
    """
    task = asyncio.current_task()
    assert task is not None
    others, left = task.cancelling(), False

    async def watch() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        left = True
        task.cancel()

    watching = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if left and task.uncancel() <= others:
            raise RunCancelled("The client left before the answer was ready.") from None
        raise
    finally:
        watching.cancel()
