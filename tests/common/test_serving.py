"""A server that is told to stop answers all that asked it before, and those who had no word of it yet."""

import asyncio
import os
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import StreamingResponse

from common.ports import hold_port
from common.web.connection import ClientConnection
from common.web.lending import client_socket
from common.web.serving import Server
from router.wire import SinkGone, pouring
from tests.e2e.conftest import answers, wait_for
from tests.router.conftest import until

HEAD = b"GET /%s HTTP/1.1\r\nhost: x\r\n\r\n"


class Asked:
    """An app one of whose answers waits until it is let, while another holds up the whole server until then."""

    def __init__(self) -> None:
        self.app = FastAPI()
        self.begun, self.let = asyncio.Event(), asyncio.Event()
        self.held_up, self.go_on = threading.Event(), threading.Event()
        for answer in (self.at_once, self.once_let, self.holding_up):
            self.app.get(f"/{answer.__name__}")(answer)

    async def at_once(self) -> None:
        pass

    async def once_let(self) -> None:
        self.begun.set()
        await self.let.wait()

    async def holding_up(self) -> None:
        self.held_up.set()
        self.go_on.wait(10)


def listening() -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener


def server_of(app: FastAPI, **options: float) -> Server:
    config = uvicorn.Config(app, http=ClientConnection, log_config=None, timeout_graceful_shutdown=10, timeout_keep_alive=60)
    return Server(config, **options)


@asynccontextmanager
async def served(app: FastAPI, **options: float) -> AsyncIterator[tuple[Server, int]]:
    """A server of this loop, and its port; all has ended when this has."""
    listener = listening()
    server = server_of(app, **options)
    running = asyncio.create_task(server.serve(sockets=[listener]))
    await until(lambda: server.started)
    yield server, listener.getsockname()[1]
    async with asyncio.timeout(10):
        await running


async def head(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(10):
        return await reader.readuntil(b"\r\n\r\n")


async def answered(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A client that was answered and asks for nothing more."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(HEAD % b"at_once")
    await head(reader)
    await reader.readexactly(4)
    return reader, writer


async def stop(server: Server) -> None:
    """Tell it to; returns when nobody can connect any more."""
    server.should_exit = True
    await until(lambda: not any(each.is_serving() for each in server.servers))


async def test_who_is_connected_is_answered_once_more_by_a_server_that_stops_and_told_that_this_was_the_last():
    asked = Asked()
    async with served(asked.app, linger_s=60) as (server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD % b"at_once")
        assert b"connection: close" not in await head(reader)
        assert await reader.readexactly(4) == b"null"

        await stop(server)
        writer.write(HEAD % b"at_once")

        told = await head(reader)
        assert told.startswith(b"HTTP/1.1 200 ")
        assert b"connection: close" in told
        assert await reader.read() == b"null"
        writer.close()


async def test_an_answer_in_the_making_is_the_last_on_its_connection():
    asked = Asked()
    async with served(asked.app, linger_s=60) as (server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD % b"once_let")
        await asked.begun.wait()

        await stop(server)
        asked.let.set()

        assert b"connection: close" in await head(reader)
        assert await reader.read() == b"null"
        writer.close()


async def test_a_server_that_stops_does_not_wait_for_clients_that_ask_for_nothing():
    asked = Asked()
    async with served(asked.app, linger_s=0) as (server, port):
        reader, writer = await answered(port)

        server.should_exit = True

        async with asyncio.timeout(10):
            assert await reader.read() == b""
        writer.close()


async def test_a_client_that_is_hung_up_on_can_know_it_before_it_asks_again():
    asked = Asked()
    async with served(asked.app, linger_s=60) as (server, port):
        _, writer = await answered(port)
        (connection,) = server.server_state.connections

        connection.close_if_idle()  # type: ignore[union-attr]

        # In this very moment: in the loop's next turn it may have asked.
        ours: socket.socket = writer.get_extra_info("socket")
        with socket.socket(fileno=os.dup(ours.fileno())) as client:
            assert client.recv(1) == b""
        writer.close()
        server.should_exit = True


async def test_a_request_whose_head_has_begun_to_come_is_answered():
    asked = Asked()
    async with served(asked.app, linger_s=0) as (server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        idle_reader, idle_writer = await asyncio.open_connection("127.0.0.1", port)
        first, rest = (HEAD % b"at_once")[:20], (HEAD % b"at_once")[20:]
        writer.write(first)
        await until(lambda: any(connection.comes for connection in server.server_state.connections))  # type: ignore[union-attr]

        server.should_exit = True
        async with asyncio.timeout(10):
            assert await idle_reader.read() == b""
        writer.write(rest)

        assert (await head(reader)).startswith(b"HTTP/1.1 200 ")
        writer.close()
        idle_writer.close()


def test_who_connected_while_the_server_was_busy_and_then_told_to_stop_is_answered():
    asked = Asked()
    listener = listening()
    server = server_of(asked.app, linger_s=0)
    thread = threading.Thread(target=lambda: server.run(sockets=[listener]))
    thread.start()
    with socket.create_connection(listener.getsockname()) as busy:
        busy.sendall(HEAD % b"holding_up")
        assert asked.held_up.wait(10)

        with socket.create_connection(listener.getsockname()) as late:
            late.sendall(HEAD % b"at_once")
            server.should_exit = True
            asked.go_on.set()

            late.settimeout(10)
            assert late.recv(64).startswith(b"HTTP/1.1 200 ")
    thread.join(10)
    assert not thread.is_alive()


async def through_the_transport(request: Request) -> AsyncIterator[bytes]:
    for _ in range(1000):
        yield b"x" * 100_000


async def past_the_transport(request: Request) -> AsyncIterator[bytes]:
    yield b"x"
    socket = client_socket(request.scope)
    assert socket is not None
    lent = await socket.lend()
    assert lent is not None
    try:
        with pytest.raises(SinkGone):
            await pouring.write(b"x" * 100_000_000, lent)
    finally:
        lent.give_back()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux bounds what a client leaves unread")
@pytest.mark.parametrize("body", [through_the_transport, past_the_transport])
async def test_a_client_that_reads_nothing_of_its_answer_is_sent_away(body: Callable[[Request], AsyncIterator[bytes]]):
    ended = asyncio.Event()
    app = FastAPI()

    async def watched(request: Request) -> AsyncIterator[bytes]:
        try:
            async for chunk in body(request):
                yield chunk
        finally:
            ended.set()

    @app.get("/")
    async def answer(request: Request) -> StreamingResponse:
        return StreamingResponse(watched(request), headers={"content-length": "1000000000"})

    async with served(app, linger_s=0, unread_s=0.3) as (server, port):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(HEAD % b"")
            async with asyncio.timeout(10):
                await ended.wait()
        server.should_exit = True


async def test_those_who_ask_for_nothing_make_room_for_those_who_come_and_those_who_ask_stay():
    asked = Asked()
    async with served(asked.app, linger_s=0, most=4) as (server, port), asyncio.timeout(10):
        waits, waiting = await asyncio.open_connection("127.0.0.1", port)
        waiting.write(HEAD % b"once_let")
        await asked.begun.wait()
        half, halfway = await asyncio.open_connection("127.0.0.1", port)
        halfway.write(b"GET /once")
        was_answered, answering = await answered(port)
        silent, saying_nothing = await asyncio.open_connection("127.0.0.1", port)
        await until(lambda: len(server.server_state.connections) == 4)
        writers = [waiting, halfway, answering, saying_nothing]

        # In the order of their last word.
        for gone in (half, was_answered, silent):
            _, writer = await answered(port)
            writers.append(writer)
            with suppress(ConnectionError):
                assert await gone.read() == b""

        assert len(server.server_state.connections) == 4
        asked.let.set()
        assert b" 200 " in await head(waits)
        for writer in writers:
            writer.close()
        server.should_exit = True


async def test_where_all_are_being_answered_the_newcomer_is_sent_away():
    asked = Asked()
    async with served(asked.app, linger_s=0, most=2) as (server, port), asyncio.timeout(10):
        waiting = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        for _, writer in waiting:
            writer.write(HEAD % b"once_let")
        await until(lambda: len(server.server_state.tasks) == 2)

        newcomer, writer = await asyncio.open_connection("127.0.0.1", port)

        with suppress(ConnectionError):
            assert await newcomer.read() == b""
        asked.let.set()
        for reader, _ in waiting:
            assert b" 200 " in await head(reader)
        for _, each in (*waiting, (newcomer, writer)):
            each.close()
        server.should_exit = True


def test_a_router_whose_files_others_would_use_up_answers_and_ends_in_good_order(tmp_path: Path):
    port, files = hold_port(), 200
    environment = {**os.environ, "AQUATINT_HOME": str(tmp_path)}
    start = ["bash", "-c", f'ulimit -n {files} && exec "$0" "$@"', sys.executable, "-m", "router", "--port", str(port)]
    with (tmp_path / "router.out").open("wb") as out:
        router = subprocess.Popen(start, env=environment, stdout=out, stderr=out)
    try:
        url = f"http://127.0.0.1:{port}/health"
        wait_for(lambda: answers(url), what="the router")
        with ExitStack() as stack:
            for _ in range(2 * files):
                stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            assert answers(url)
    finally:
        router.terminate()
        ended = router.wait(30)
    assert ended == 0, (tmp_path / "router.out").read_text()
