"""Work beside the requests: begun with the app, ended with it, and never ended in silence."""

import asyncio
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from typing import Any, TypeVar

from common.logs import get_logger

log = get_logger(__name__)
T = TypeVar("T")


async def ended(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until its clean-up is done."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def set_within(event: asyncio.Event, seconds: float) -> bool:
    """Whether it is set, or will be within so many seconds. One who is cancelled hears of it."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


async def beside(main: Coroutine[Any, Any, T], aside: Coroutine[Any, Any, None]) -> T:
    """Do two things at once and give what the first one gives. When `aside` fails `main` is cancelled; when `main` fails, or
    the caller is cancelled, `aside` is still brought to its end."""
    first, second = asyncio.create_task(main), asyncio.create_task(aside)
    try:
        await asyncio.wait({first, second}, return_when=asyncio.FIRST_EXCEPTION)
        if second.done():
            second.result()
        made = await first
        await second
        return made
    finally:
        first.cancel()
        await asyncio.gather(first, second, return_exceptions=True)


def run_beside(name: str, work: Coroutine[Any, Any, None], stack: AsyncExitStack) -> None:
    """Run `work` until the stack closes. If it ends by itself with an error, that is logged."""
    task = asyncio.create_task(work, name=name)

    def say(done: asyncio.Task[None]) -> None:
        if not done.cancelled() and (error := done.exception()) is not None:
            log.error("background_work_ended", name=name, exc_info=error)

    task.add_done_callback(say)
    stack.push_async_callback(ended, task)
