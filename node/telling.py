"""Tells routers what the node is doing, as soon as it changes: the node is the only truth about itself."""

import asyncio
from collections.abc import AsyncGenerator, Callable

from common.node_api import NodeStatus
from common.state_lines import SAID_EVERY_S, line_of

LEAST_APART_S = 0.02
"""Changes within this time of one another go out as one line: a node of quick steps must not flood its routers."""


class Teller:
    """One for all who listen. Who listens slowly is told what is true when it can take more, not what has been."""

    def __init__(self, state: Callable[[], NodeStatus], *, holds_runs: Callable[[], bool]) -> None:
        """holds_runs: whether a run is here that has no answer yet, on the device or off it."""
        self._state = state
        self._holds_runs = holds_runs
        self._listeners: set[asyncio.Event] = set()
        self.leaving = False
        """The process was told to stop: it takes nothing new, and says so until the last of its runs has ended."""

    def changed(self) -> None:
        """Something is not as it was told."""
        for listener in self._listeners:
            listener.set()

    def leave(self) -> None:
        """The process is told to stop."""
        self.leaving = True
        self.changed()

    async def lines(self) -> AsyncGenerator[bytes]:
        """The state now, then its changes; ends when the node leaves and has nothing more to tell of."""
        told: NodeStatus | None = None
        listener = asyncio.Event()
        self._listeners.add(listener)
        try:
            while True:
                listener.clear()
                status, last = self._state(), self.leaving and not self._holds_runs()
                yield line_of(told, status)
                told = status
                if last:
                    return
                await asyncio.sleep(LEAST_APART_S)
                try:
                    async with asyncio.timeout(SAID_EVERY_S - LEAST_APART_S):
                        await listener.wait()
                except TimeoutError:
                    continue
        finally:
            self._listeners.discard(listener)
