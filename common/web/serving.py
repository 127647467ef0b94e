"""uvicorn, set up alike for router and node."""

import asyncio
import resource
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from common.web.lending import LendingProtocol

LOOK_EVERY_S = 0.05
MOST_OPEN_FILES = 65_536
STARTUP_FAILED = 3
"""uvicorn's own exit code for it."""


class Server(uvicorn.Server):
    """uvicorn, which told a second time to stop ends what is in flight, and still closes the app in good order.

    By itself it knows only a second Ctrl-C, and then leaves without closing the app.
    """

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None], on_interrupt: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop
        self._on_interrupt = on_interrupt
        self._stop_now = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal has come."""
        self._stop_now = self.should_exit
        # Never as SIGINT, of which a second one would skip the closing of the app.
        super().handle_exit(signal.SIGTERM, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, let what is in flight end, close the app."""
        self._on_stop()
        await super().shutdown(sockets)

    async def _wait_tasks_to_complete(self) -> None:
        """Until nothing is in flight. Raises: TimeoutError: told to stop now; uvicorn then cancels what is in flight."""
        waiting = asyncio.ensure_future(super()._wait_tasks_to_complete())
        try:
            while not waiting.done():
                if self._stop_now:
                    raise TimeoutError
                await asyncio.wait({waiting}, timeout=LOOK_EVERY_S)
            await waiting
        except BaseException:  # Told to stop now, or the time to drain is over.
            waiting.cancel()
            self._on_interrupt()
            raise


def allow_open_files() -> None:
    """Each client that waits is an open file; the 1,024 that many systems begin with are thought for programs of another
    kind. What the system's administrator allows at most stays."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def serve(
    app: FastAPI,
    *,
    host: str,
    port: int,
    drain_s: int = 30,
    on_stop: Callable[[], None] = lambda: None,
    on_interrupt: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGINT or SIGTERM, then let requests in flight end for at most `drain_s` seconds; a second signal ends
    them at once.

    Without that bound uvicorn waits for open streams for ever. on_stop: called when it is told to stop the first time.
    on_interrupt: called before requests in flight are cancelled.
    """
    allow_open_files()
    # uvicorn raises the signal again once it has ended in good order; a process that did what it was told exits with 0.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=LendingProtocol,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=drain_s,
        timeout_keep_alive=65,
        backlog=4096,
        server_header=False,
    )
    server = Server(config, on_stop, on_interrupt)
    server.run()
    if not server.started:
        sys.exit(STARTUP_FAILED)
