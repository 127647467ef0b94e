"""What is done for an answer, or for what is sent to get one, but need not be done before it is on its way."""

import asyncio
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any

from common.logs import get_logger

log = get_logger(__name__)

LATER_S = 0.01


def soon(work: Callable[..., object], *arguments: Any) -> None:
    """Do it in the event loop's next turn: after what was written in this one has been sent, before anything new is read."""
    asyncio.get_running_loop().call_soon(work, *arguments)


class Later:
    """What nobody looks at in the same moment, such as a line in the log: that of many requests, done together `LATER_S`
    later. A processor that does the same several times in a row needs a third of the time for it."""

    def __init__(self) -> None:
        self._work: list[tuple[Context, Callable[..., object], tuple[Any, ...]]] = []

    def put(self, work: Callable[..., object], *arguments: Any) -> None:
        """Do it then, as if it were done now: with the ids that are bound for the log."""
        if not self._work:
            asyncio.get_running_loop().call_later(LATER_S, self.catch_up)
        self._work.append((copy_context(), work, arguments))

    def catch_up(self) -> None:
        """Do all of it now."""
        work, self._work = self._work, []
        for context, each, arguments in work:
            try:
                context.run(each, *arguments)
            except Exception:
                log.exception("not_done_later")
