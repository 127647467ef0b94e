"""An answer's way to its client: nothing that stands behind it is held when that client has gone, however early."""

import asyncio
import socket
from collections.abc import AsyncGenerator

import httpx
import pytest
from fastapi import FastAPI, Request

from common.web.lending import client_socket
from router.body import Body, Whole
from router.passing import Passed
from tests.serving import served


class Answering:
    """An app that answers with a body without an end, and is told how that ended."""

    def __init__(self, *, late: bool) -> None:
        """late: it begins to answer when its client has left."""
        self.app = FastAPI()
        self.app.get("/")(self.answer)
        self._late = late
        self.ended = asyncio.Event()
        self.sent = 0

    async def answer(self, request: Request) -> Passed:
        if self._late:
            left, socket = asyncio.Event(), client_socket(request.scope)
            assert socket is not None
            socket.when_left(left.set)
            await left.wait()
            socket.when_left(None)
        return Passed(Body(self._numbers(), self._end), status=200, headers={"content-type": "text/plain"})

    async def _numbers(self) -> AsyncGenerator[bytes]:
        yield b"0"
        self.sent += 1
        await asyncio.Event().wait()

    def _end(self, whole: bool) -> None:
        assert not whole
        self.ended.set()


@pytest.mark.parametrize("late", [False, True], ids=["while it is sent", "before it is"])
async def test_a_body_is_let_go_of_when_its_client_leaves(late: bool):
    answering = Answering(late=late)
    async with served(answering.app) as url, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        if not late:
            await reader.readuntil(b"\r\n0\r\n")
        writer.close()

        await answering.ended.wait()

    assert answering.sent == (0 if late else 1)


async def test_one_that_is_there_already_is_sent_with_its_headers():
    app = FastAPI()

    @app.get("/")
    async def answer() -> Passed:
        return Passed(Whole(b"a picture"), status=201, headers={"content-length": "9", "x-name": "a \xfc"})

    async with served(app) as url, httpx.AsyncClient() as client:
        for _ in range(2):
            reply = await client.get(url)
            assert (reply.status_code, reply.content) == (201, b"a picture")
            assert reply.headers.raw[-1] == (b"x-name", b"a \xfc")


async def test_one_that_is_there_already_leaves_in_one_piece_with_its_head():
    app = FastAPI()

    @app.get("/")
    async def answer() -> Passed:
        return Passed(Whole(b"a picture"), status=200, headers={"content-length": "9"})

    def first_pieces(port: int) -> list[bytes]:
        """What came at once of each answer: a client that is waiting already sees the first that leaves by itself."""
        with socket.create_connection(("127.0.0.1", port)) as client:
            pieces = []
            for _ in range(50):
                client.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                pieces.append(client.recv(65536))
                if not pieces[-1].endswith(b"a picture"):
                    break
            return pieces

    async with served(app) as url:
        pieces = await asyncio.to_thread(first_pieces, int(url.rpartition(":")[2]))

    assert len(pieces) == 50
    assert all(piece.endswith(b"\r\n\r\na picture") for piece in pieces)
