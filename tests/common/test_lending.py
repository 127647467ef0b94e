"""What the server tells of a client and its request to those who are not reading just then."""

import asyncio

import pytest
from fastapi import FastAPI, Request

from common.errors import RunCancelled
from common.web.clients import until_client_leaves
from common.web.lending import client_socket
from tests.common.telling import HEAD, Told, connected
from tests.serving import served


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
