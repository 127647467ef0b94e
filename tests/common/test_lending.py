"""What the server tells of a client and its request to those who are not reading just then."""

import asyncio
from contextlib import suppress

import pytest
from fastapi import FastAPI, Request

from common.errors import RunCancelled
from common.web import lending
from common.web.clients import until_client_leaves
from common.web.lending import Flag, client_socket
from tests.serving import served

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


async def test_a_request_is_whole_with_its_last_byte_whoever_reads_it():
    told = Told()
    async with served(told.app) as url, asyncio.timeout(10):
        reader, writer = await connected(url)
        writer.write(HEAD % 4 + b"ab")
        await told.begun.wait()
        assert not told.whole.is_set()

        writer.write(b"cd")
        await told.whole.wait()

        told.let.set()
        assert b" 200 " in await reader.readline()
        writer.close()


async def test_a_request_that_was_whole_before_anybody_asked_is_told_of_at_once():
    told = Told()
    told.let.set()
    async with served(told.app) as url, asyncio.timeout(10):
        reader, writer = await connected(url)
        writer.write(HEAD % 2 + b"ab")
        assert b" 200 " in await reader.readline()
        writer.close()

    assert told.whole.is_set()


async def test_work_ends_when_its_client_leaves_though_nothing_reads_from_it():
    told = Told()
    async with served(told.app) as url, asyncio.timeout(10):
        _, writer = await connected(url)
        writer.write(HEAD % 0)
        await told.begun.wait()

        writer.close()

        await told.left.wait()


async def test_a_client_that_leaves_between_two_pieces_of_work_is_told_to_the_second():
    ended = asyncio.Event()
    app = FastAPI()

    @app.post("/")
    async def answer(request: Request) -> dict[str, int]:
        socket = client_socket(request.scope)
        assert socket is not None
        left = asyncio.Event()
        socket.when_left(left.set)
        if not socket.left:
            await left.wait()
        with pytest.raises(RunCancelled):
            await until_client_leaves(request, asyncio.sleep(60))
        ended.set()
        return {}

    async with served(app) as url, asyncio.timeout(10):
        _, writer = await connected(url)
        writer.write(HEAD % 0)
        writer.close()
        await ended.wait()


CHUNKED = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("begins", "goes_on"),
    [
        (b"GET / HTTP/1.1\r\nx-endless: ", b"x" * 8192),
        (b"GET / HTTP/1.1\r\n", b"x: y\r\n" * 1024),
        (b"GET /", b"x" * 8192),
        (CHUNKED + b"0\r\nx-endless: ", b"x" * 8192),
        (CHUNKED + b"1;x=", b"x" * 8192),
    ],
    ids=["header", "headers", "path", "trailer", "extension of a chunk"],
)
async def test_a_client_whose_head_has_no_end_is_sent_away(begins: bytes, goes_on: bytes):
    async with served(Told().app) as url, asyncio.timeout(10):
        _, writer = await connected(url)
        writer.write(begins)
        sent_bytes = 0
        with suppress(ConnectionError):
            while sent_bytes < 50_000_000:
                writer.write(goes_on)
                await writer.drain()
                sent_bytes += len(goes_on)
        assert sent_bytes < 50_000_000


async def test_a_client_whose_head_is_long_in_coming_is_sent_away(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lending, "HEAD_WITHIN_S", 0.2)
    async with served(Told().app) as url, asyncio.timeout(10):
        stops, waiting = await connected(url)
        waiting.write(b"POST / HT")
        drips, dripping = await connected(url)
        dripping.write(b"POST / HTTP/1.1\r\nx-endless: ")

        async def drip() -> None:
            with suppress(ConnectionError):
                while True:
                    dripping.write(b"x")
                    await dripping.drain()
                    await asyncio.sleep(0.02)

        slowly = asyncio.create_task(drip())
        for reader in (stops, drips):
            assert (await reader.readline()).startswith(b"HTTP/1.1 400 ")
        slowly.cancel()
        waiting.close()
        dripping.close()


async def test_a_client_that_says_nothing_is_sent_away_and_one_that_is_answered_is_not():
    told = Told()
    async with served(told.app, silent_s=0.2) as url, asyncio.timeout(10):
        reader, writer = await connected(url)
        writer.write(HEAD % 0)
        silent_reader, silent_writer = await connected(url)

        assert await silent_reader.read() == b""

        told.let.set()
        assert b" 200 " in await reader.readline()
        writer.close()
        silent_writer.close()


@pytest.mark.parametrize("size", [1, 65_536, 1_000_000])
async def test_a_body_may_be_as_long_as_it_likes_however_it_is_cut(size: int):
    told = Told()
    told.let.set()
    async with served(told.app) as url, asyncio.timeout(10):
        reader, writer = await connected(url)
        writer.write(CHUNKED)
        for _ in range(min(20_000, 5_000_000 // size)):
            for piece in (b"%x\r\n" % size, b"x" * size, b"\r\n"):
                writer.write(piece)
            await writer.drain()
        writer.write(b"0\r\n\r\n")

        assert b" 200 " in await reader.readline()
        writer.close()


async def test_a_flag_wakes_all_who_wait_and_one_that_gives_up_wakes_nobody():
    flag = Flag()
    first, second, leaving = (asyncio.ensure_future(flag.wait()) for _ in range(3))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert not first.done()

    flag.set()
    await asyncio.wait_for(asyncio.gather(first, second, flag.wait()), 5)

    flag.clear()
    waiting = asyncio.ensure_future(flag.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()
