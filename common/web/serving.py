"""uvicorn, set up alike for router and node."""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import FrameType

import uvicorn
from fastapi import FastAPI

from common.web.connection import ClientConnection
from common.web.connections import Connections, allow_open_files, most_connections

LOOK_EVERY_S = 0.05
LINGER_S = 0.2
"""How long clients that ask for nothing may stay connected to a server that was told to stop."""
UNREAD_S = 60.0
"""How long a client may read nothing of an answer that waits for it, or be gone without a word: nginx' `send_timeout`."""
STARTUP_FAILED = 3
"""uvicorn's own exit code for it."""


class Server(uvicorn.Server):
    """uvicorn, which loses no request when it is told to stop, and told so a second time ends what is in flight, and still
    closes the app in good order.

    By itself it hangs up on clients that it has not read from yet, and on those that ask again in that very moment; and it
    knows only a second Ctrl-C, and then leaves without closing the app.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        on_stop: Callable[[], None] = lambda: None,
        on_interrupt: Callable[[], None] = lambda: None,
        linger_s: float = LINGER_S,
        look_every_s: float = LOOK_EVERY_S,
        unread_s: float = UNREAD_S,
        most: int | None = None,
    ) -> None:
        """look_every_s: whether all that was in flight has ended. most: connections of clients at a time, as many as there
        can be where None."""
        super().__init__(config)
        self.server_state.connections = Connections(most_connections() if most is None else most)  # type: ignore[assignment]
        self._unread_s = unread_s
        self._on_stop = on_stop
        self._on_interrupt = on_interrupt
        self._linger_s, self._look_every_s = linger_s, look_every_s
        self._stop_now = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen. Each connection inherits the bound on clients that do not read, which is the kernel's to keep: only it
        knows of all that is on its way to them."""
        await super().startup(sockets)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            for listener in _copies(self.servers):
                with listener:
                    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * self._unread_s))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal has come."""
        self._stop_now = self.should_exit
        # Never as SIGINT, of which a second one would skip the closing of the app.
        super().handle_exit(signal.SIGTERM, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more connections, answer what has come and what still comes on those there are, close the app."""
        self._on_stop()
        await self._stop_listening()
        for connection in list(self.server_state.connections):
            connection.end_with_answer()  # type: ignore[union-attr]
        try:
            async with asyncio.timeout(self.config.timeout_graceful_shutdown):
                await self._wait_tasks_to_complete()
        except TimeoutError:  # Told to stop now, or the time to drain is over.
            self._on_interrupt()
            for task in list(self.server_state.tasks):
                task.cancel()
        await self.lifespan.shutdown()

    async def _stop_listening(self) -> None:
        """Take those clients that have connected: the system sends away what nobody took from a socket that is closed."""
        came: list[socket.socket] = []
        listeners = _copies(self.servers)
        for server in self.servers:
            server.close()
        for listener in listeners:
            with listener, suppress(OSError):
                listener.setblocking(False)
                while True:
                    came.append(listener.accept()[0])
        for client in came:
            client.setblocking(False)
            await asyncio.get_running_loop().connect_accepted_socket(self._protocol, client)

    def _protocol(self) -> ClientConnection:
        return ClientConnection(self.config, self.server_state, self.lifespan.state)

    async def _wait_tasks_to_complete(self) -> None:
        """Until nothing is in flight and nobody connected. Raises: TimeoutError: told to stop now."""
        stays_until_s = time.monotonic() + self._linger_s
        while self.server_state.connections or self.server_state.tasks:
            if self._stop_now:
                raise TimeoutError
            if time.monotonic() >= stays_until_s:
                for connection in list(self.server_state.connections):
                    connection.close_if_idle()  # type: ignore[union-attr]
            await asyncio.sleep(self._look_every_s)
        for server in self.servers:
            await server.wait_closed()


def _copies(servers: Iterable[asyncio.Server]) -> list[socket.socket]:
    """Of the sockets they listen on."""
    return [socket.socket(fileno=os.dup(listener.fileno())) for server in servers for listener in server.sockets]


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
        http=ClientConnection,
        ws="none",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=drain_s,
        timeout_keep_alive=65,
        backlog=4096,
        server_header=False,
    )
    server = Server(config, on_stop=on_stop, on_interrupt=on_interrupt)
    server.run()
    if not server.started:
        sys.exit(STARTUP_FAILED)
