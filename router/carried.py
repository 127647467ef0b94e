"""Runs that this router is dispatching, so that one can be ended from outside its request."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from common.errors import RunCancelled

T = TypeVar("T")


class Carried:
    """By run id, for as long as each is dispatched."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[Any]] = {}
        self._withdrawn: set[str] = set()

    async def carry(self, run_id: str, work: Coroutine[Any, Any, T]) -> T:
        """Do `work`, the dispatch of a run. Raises: RunCancelled: it was withdrawn; `work` was cancelled and has ended."""
        task = asyncio.current_task()
        assert task is not None
        others = task.cancelling()
        self._tasks[run_id] = task
        try:
            return await work
        except asyncio.CancelledError:
            if run_id in self._withdrawn and task.uncancel() <= others:
                raise RunCancelled("The run was cancelled.") from None
            raise
        finally:
            del self._tasks[run_id]
            self._withdrawn.discard(run_id)

    def withdraw(self, run_id: str) -> bool:
        """End the dispatch of a run: in the queue at once, at a node by closing the connection. False: it is not here."""
        task = self._tasks.get(run_id)
        if task is None:
            return False
        if run_id not in self._withdrawn:
            self._withdrawn.add(run_id)
            task.cancel()
        return True
