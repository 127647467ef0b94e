"""An app that tells what became of its client, and a client of bare bytes."""

import asyncio

from fastapi import FastAPI, Request

from common.errors import RunCancelled
from common.web.clients import until_client_leaves
from common.web.lending import client_socket

HEAD = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"


class Told:
    """An app that answers when it is let, and what it was told meanwhile."""

    def __init__(self) -> None:
        self.app = FastAPI()
        self.begun, self.whole, self.let, self.left = (asyncio.Event() for _ in range(4))
        self.app.post("/")(self.answer)

    async def answer(self, request: Request) -> dict[str, int]:
        socket = client_socket(request.scope)
        assert socket is not None
        socket.when_whole(self.whole.set)
        self.begun.set()
        try:
            await until_client_leaves(request, self.let.wait())
        except RunCancelled:
            self.left.set()
            raise
        return {}


async def connected(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))
