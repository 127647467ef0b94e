"""Work that is worth nothing once its client has gone."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive

from common.errors import RunCancelled
from common.web.lending import client_socket

T = TypeVar("T")
LEFT = "The client left before the answer was ready."


async def until_client_leaves(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Run `work` as `while_client_stays` does a block: without a task that watches, where the server tells."""
    socket = client_socket(request.scope)
    if socket is None:
        async with while_client_stays(request.receive):
            return await work
    if socket.left:
        work.close()
        raise RunCancelled(LEFT)
    leaving = _Leaving()
    socket.when_left(leaving.now)
    try:
        return await work
    except asyncio.CancelledError:
        leaving.explain()
        raise
    finally:
        socket.when_left(None)


@asynccontextmanager
async def while_client_stays(receive: Receive) -> AsyncIterator[None]:
    """Cancel the block as soon as the client disconnects. The request's body must have been read before; and where the block
    sends the answer, its last part is the last thing that the block waits for, as a server tells of it as of a disconnect.

    FastAPI does not do this by itself: a handler whose client left runs to its end.
    Raises: RunCancelled: the client left; the block was cancelled and has ended.
    """
    leaving = _Leaving()

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        leaving.now()

    watching = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        leaving.explain()
        raise
    finally:
        watching.cancel()


class _Leaving:
    """What becomes of the present task when its client leaves."""

    __slots__ = ("_left", "_others", "_task")

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._others, self._left = task, task.cancelling(), False

    def now(self) -> None:
        """The client has left."""
        self._left = True
        self._task.cancel()

    def explain(self) -> None:
        """Of a cancel of the task. Raises: RunCancelled: it is the client's doing, and nobody else's."""
        if self._left and self._task.uncancel() <= self._others:
            raise RunCancelled(LEFT) from None
