"""Futures that others may have cancelled meanwhile."""

import asyncio
from typing import TypeVar

T = TypeVar("T")


def settle(future: asyncio.Future[T], found: T, error: BaseException | None = None) -> None:
    """Have it end with `found`, or with `error` where there is one; nothing, if it was cancelled."""
    if future.done():
        return
    if error is None:
        future.set_result(found)
    else:
        future.set_exception(error)
