"""An app on a real socket of this process, which stops as soon as it is told to."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import uvicorn
from fastapi import FastAPI

from common.web.connection import ClientConnection
from common.web.serving import Server

LOOK_EVERY_S = 0.005
DATE_EVERY_S = 1.0


class PromptServer(Server):
    """That of routers and nodes, which by itself looks ten times a second whether it is to stop, and then stays for clients
    that may come back: half a second for a router and two nodes, in each of a thousand tests."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config, linger_s=0.0, look_every_s=LOOK_EVERY_S)
        self._told = asyncio.Event()

    def stop(self) -> None:
        """From now on no connection is accepted."""
        self.should_exit = True
        self._told.set()

    async def main_loop(self) -> None:
        """Until it is told to stop. A tick of number 0 renews the date that answers bear."""
        while not await self.on_tick(0):
            with suppress(TimeoutError):
                async with asyncio.timeout(DATE_EVERY_S):
                    await self._told.wait()


@asynccontextmanager
async def served(app: FastAPI, port: int = 0, *, silent_s: float = 65) -> AsyncIterator[str]:
    """`app` on a port of this machine, a free one for 0; the base URL. silent_s: how long clients that ask for nothing may
    stay."""
    # Named as TCP, or asyncio leaves Nagle's algorithm on: 40 ms an answer.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    config = uvicorn.Config(app, http=ClientConnection, log_config=None, lifespan="on", timeout_graceful_shutdown=1)
    config.timeout_keep_alive = silent_s  # type: ignore[assignment]
    server = PromptServer(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        if task.done():
            await task
        await asyncio.sleep(LOOK_EVERY_S)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.stop()
        await task
        listener.close()
