"""The client for runs, before nodes that break every rule of the wire. Real sockets, bytes as they would come."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from router import wire
from router.wire import connection as limits

BODY = b'{"data":[]}'
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n" + BODY
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
CL_11 = b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n"

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def node(script: Script) -> AsyncIterator[str]:
    """A node that does `script` with each connection, and nothing else; its URL."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await script(reader, writer)
        except (OSError, EOFError):
            pass
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def request_of(reader: asyncio.StreamReader) -> bytes:
    """One whole request: its head."""
    head = await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0]))
    return head


def says(*answers: bytes, end: bool = True) -> Script:
    """Answers each request with the next of `answers`; then closes, or waits for the client to."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in answers:
            await request_of(reader)
            writer.write(answer)
            await writer.drain()
        if not end:
            await reader.read()

    return script


async def asked(pool: wire.Pool, url: str, *, silence_s: float | None = 5) -> tuple[int, bytes]:
    """One request; the status and the whole body."""
    answer = await pool.post(f"{url}/v1/images/generations", {"x-run-id": "run_1"}, b"{}")
    try:
        return answer.status, b"".join([chunk async for chunk in answer.chunks(wire.Patience(silence_s))])
    finally:
        answer.close()


@pytest.mark.parametrize(
    ("bytes_sent", "body"),
    [
        (WHOLE, BODY),
        (CHUNKED + b'5\r\n{"dat\r\n6\r\na":[]}\r\n0\r\n\r\n', BODY),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + WHOLE, BODY),
        (b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\ncontent-length: 3\r\n\r\n" + WHOLE, BODY),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\nconnection: close\r\n\r\n" + BODY, BODY),
    ],
    ids=["length", "chunked", "100", "103", "empty", "close"],
)
async def test_an_answer_comes_whole_however_it_is_framed(pool: wire.Pool, bytes_sent: bytes, body: bytes):
    async with node(says(bytes_sent)) as url:
        assert await asked(pool, url) == (200, body)


@pytest.mark.parametrize(
    ("bytes_sent", "body"),
    [
        (WHOLE, BODY),
        (CHUNKED + b'5\r\n{"dat\r\n6\r\na":[]}\r\n0\r\n\r\n', BODY),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b""),
        (CL_11 + b"\r\n" + BODY[:5], None),
        (CHUNKED + b"b\r\n" + BODY + b"\r\n", None),
    ],
    ids=["length", "chunked", "empty", "short", "no last chunk"],
)
async def test_a_body_that_came_with_its_head_is_had_at_once_and_its_connection_is_free(
    pool: wire.Pool, bytes_sent: bytes, body: bytes | None
):
    connections = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await says(bytes_sent, bytes_sent, end=False)(reader, writer)

    async with node(script) as url:
        for _ in range(2):
            answer = await pool.post(url, {}, b"")
            assert answer.whole() == body
            if body is None:
                answer.close()
        assert connections == (1 if body is not None else 2)


@pytest.mark.parametrize(
    "bytes_sent",
    [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-le",
        b"220 smtp.example ESMTP\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n" + BODY,
        CL_11 + b"content-length: 12\r\n\r\n" + BODY,
        CL_11 + b"content-length: 11\r\n\r\n" + BODY,
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n" + BODY,
        b"HTTP/1.1 200 OK\r\ncontent-length: 1_1\r\n\r\n" + BODY,
        b"HTTP/1.1 200 OK\r\ncontent-length: " + b"9" * 400 + b"\r\n\r\n" + BODY,
        CL_11 + b"transfer-encoding: chunked\r\n\r\nb\r\n" + BODY + b"\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        CL_11 + b"content-encoding: gzip\r\n\r\n" + BODY,
        CL_11 + b"bad header\r\n\r\n" + BODY,
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x-filler: 1\r\n" * 10_000 + b"content-length: 11\r\n\r\n" + BODY,
        b"HTTP/1.1 200 OK\r\nx-filler: " + b"1" * 100_000 + b"\r\ncontent-length: 11\r\n\r\n" + BODY,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000,
    ],
)
async def test_a_head_that_cannot_be_trusted_is_no_answer(pool: wire.Pool, bytes_sent: bytes):
    async with node(says(bytes_sent)) as url:
        with pytest.raises(wire.Broken):
            await asked(pool, url)


@pytest.mark.parametrize(
    "bytes_sent",
    [
        CL_11 + b"\r\n" + BODY[:5],
        CHUNKED + b"5\r\n{",
        CHUNKED + b"b\r\n" + BODY + b"\r\n",
        CHUNKED + b"zz\r\n" + BODY,
        CHUNKED + b"b\r\n" + BODY + b"garbage",
        CHUNKED + b"ffffffffffffffffff\r\n" + BODY,
    ],
    ids=["short", "cut chunk", "no last chunk", "bad size", "bad end of chunk", "size beyond 64 bits"],
)
async def test_a_body_that_is_cut_or_misframed_is_never_taken_for_a_whole_one(pool: wire.Pool, bytes_sent: bytes):
    async with node(says(bytes_sent)) as url:
        with pytest.raises(wire.Broken):
            await asked(pool, url)


@pytest.mark.parametrize("framing", [b"content-length: 100000", b"transfer-encoding: chunked"])
@pytest.mark.parametrize("from_its_end", [-1, 0, 1, 2, 3, 4, 20])
async def test_a_head_may_come_in_two_pieces_wherever_it_is_cut(pool: wire.Pool, framing: bytes, from_its_end: int):
    head, body = b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n", b"x" * 100_000
    sent = head + (body if b"length" in framing else b"186a0\r\n" + body + b"\r\n0\r\n\r\n")
    at, connections = len(head) - from_its_end, 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while await request_of(reader):
            writer.write(sent[:at])
            await writer.drain()
            while not any(each._head_bytes for each in pool._open):  # Until the first piece was read.
                await asyncio.sleep(0)
            writer.write(sent[at:])

    async with node(script) as url:
        for _ in range(2):
            assert await asked(pool, url) == (200, body)
        assert connections == 1


async def test_heads_without_an_end_are_given_up(pool: wire.Pool):
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        while not writer.is_closing():
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)
            await writer.drain()

    async with node(script) as url:
        with pytest.raises(wire.Broken, match="no end"):
            await asked(pool, url)


async def test_what_follows_a_body_is_given_up_when_it_has_no_end(pool: wire.Pool):
    sent_bytes = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent_bytes
        await request_of(reader)
        writer.write(CHUNKED + b"b\r\n" + BODY + b"\r\n0\r\nx-trailer: ")
        while not writer.is_closing():
            writer.write(b"x" * 65_536)
            await writer.drain()
            sent_bytes += 65_536

    async with node(script) as url:
        with pytest.raises(wire.Broken, match="no end"):
            await asked(pool, url)
        assert sent_bytes < 50_000_000


async def test_a_stream_may_go_on_for_ever_however_its_chunks_are_cut(pool: wire.Pool):
    events = 40_000

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(CHUNKED)
        for _ in range(events):
            for piece in (b"1\r\n", b"x", b"\r\n"):
                writer.write(piece)
                await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    async with node(script) as url:
        status, body = await asked(pool, url)
        assert (status, len(body)) == (200, events)


@pytest.mark.parametrize("at", [0, 20, len(CL_11) + 7], ids=["before the head", "in the head", "in the body"])
async def test_a_reset_is_noticed_wherever_it_comes(pool: wire.Pool, at: int):
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(WHOLE[:at])
        await writer.drain()
        writer.transport.abort()

    async with node(script) as url:
        with pytest.raises(wire.Broken):
            await asked(pool, url)


async def test_bytes_beyond_an_answer_never_reach_the_next_request(pool: wire.Pool):
    evil = WHOLE.replace(b"data", b"evil")
    connections = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await says(WHOLE + evil, WHOLE + BODY, CHUNKED + b"0\r\n\r\n" + evil, end=False)(reader, writer)

    async with node(script) as url:
        bodies = [(await asked(pool, url))[1] for _ in range(6)]
        assert bodies == [BODY] * 6
        assert connections == 6


async def test_a_late_second_answer_on_an_idle_connection_is_dropped_with_it(pool: wire.Pool):
    sent = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(WHOLE)
        if not sent.is_set():
            await writer.drain()
            await asyncio.sleep(0.05)
            writer.write(WHOLE.replace(b"data", b"evil"))
            await writer.drain()
            await reader.read()
            sent.set()

    async with node(script) as url:
        assert (await asked(pool, url))[1] == BODY
        await sent.wait()
        assert (await asked(pool, url))[1] == BODY


async def test_a_connection_is_used_again_and_one_that_was_closed_while_idle_is_not(pool: wire.Pool):
    connections, closed = 0, asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await says(WHOLE, WHOLE)(reader, writer)
        writer.close()
        await writer.wait_closed()
        closed.set()

    async with node(script) as url:
        for _ in range(2):
            assert await asked(pool, url) == (200, BODY)
        assert connections == 1
        await closed.wait()
        assert await asked(pool, url) == (200, BODY)
        assert connections == 2


async def test_an_answer_before_the_request_was_all_sent_ends_the_connection(pool: wire.Pool):
    connections = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        await asyncio.Event().wait()

    async with node(script) as url:
        for number in (1, 2):
            answer = await pool.post(url, {}, b"x" * 32_000_000)
            assert answer.status == 413
            answer.close()
            assert connections == number


async def test_a_body_that_trickles_is_given_up_but_a_slow_reader_is_not(pool: wire.Pool):
    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x")
            await asyncio.sleep(0.05)

    async with node(trickle) as url:
        with pytest.raises(wire.Broken, match="slowly"):
            await asked(pool, url, silence_s=0.3)

    async with node(says(b"HTTP/1.1 200 OK\r\ncontent-length: 2000000\r\n\r\n" + b"x" * 2_000_000, end=False)) as url:
        answer, size = await pool.post(url, {}, b""), 0
        async for chunk in answer.chunks(wire.Patience(0.3)):
            size += len(chunk)
            await asyncio.sleep(0.1)
        answer.close()
        assert size == 2_000_000


async def test_a_reader_that_stalls_holds_back_the_node_and_not_more_than_a_window_here(pool: wire.Pool):
    sent = 0

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await request_of(reader)
        writer.write(CHUNKED)
        while not writer.is_closing():
            writer.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            await writer.drain()
            sent += 65536

    async with node(flood) as url:
        answer = await pool.post(url, {}, b"")
        before = -1
        while sent != before:  # Until the sockets' buffers are full too.
            before = sent
            await asyncio.sleep(0.2)
        held = answer._connection._held_bytes
        assert limits.HIGH_WATER_BYTES < held < 3 * limits.HIGH_WATER_BYTES
        answer.close()


async def test_a_node_is_told_at_once_that_nobody_waits_any_more(pool: wire.Pool):
    arrived, told = asyncio.Event(), asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        arrived.set()
        await reader.read()
        told.set()

    async with node(script) as url:
        waiting = asyncio.create_task(pool.post(url, {}, b""))
        await arrived.wait()
        waiting.cancel()
        async with asyncio.timeout(1):
            await told.wait()


async def test_whoever_waits_for_a_node_that_is_given_up_waits_no_longer(pool: wire.Pool):
    lost = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        lost.set()
        await reader.read()

    async with node(script) as url:
        with pytest.raises(wire.Broken, match="no longer answers"):
            async with asyncio.timeout(5):
                await pool.post(url, {}, b"", lost=lost)


@pytest.mark.parametrize("asked_before", [False, True], ids=["a new connection", "a kept one"])
async def test_whoever_waits_for_a_node_waits_no_longer_than_his_time(pool: wire.Pool, asked_before: bool):
    arrived, told = asyncio.Event(), asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if asked_before:
            await says(WHOLE, end=True)(reader, writer)
        await request_of(reader)
        arrived.set()
        await reader.read()
        told.set()

    async with node(script) as url, asyncio.timeout(5):
        if asked_before:
            await asked(pool, url)
        began_s = time.monotonic()
        with pytest.raises(TimeoutError):
            await pool.post(url, {}, b"", deadline_s=began_s + 0.1)
        assert time.monotonic() >= began_s + 0.1
        await arrived.wait()
        await told.wait()


async def test_a_time_that_is_over_before_there_is_a_connection_says_so():
    pool = wire.Pool(connect_timeout_s=0.3)
    with socket.socket() as listener:
        # Its backlog is full, so nobody is let in any more, nor sent away.
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)):
            for wanted, error in ((time.monotonic() + 0.1, TimeoutError), (time.monotonic() + 60, wire.Refused)):
                with pytest.raises(error):
                    await pool.post(f"http://127.0.0.1:{port}/", {}, b"", deadline_s=wanted)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/", "http://127.0.0.1:99999/", "https://127.0.0.1:9/", "http://no.invalid/"]
)
async def test_a_node_that_cannot_be_reached_was_sent_nothing(pool: wire.Pool, url: str):
    with pytest.raises(wire.Refused):
        await pool.post(url, {}, b"")


async def test_a_value_cannot_become_a_header_of_its_own(pool: wire.Pool):
    heads = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await request_of(reader))
        writer.write(WHOLE)

    async with node(script) as url:
        answer = await pool.post(f"{url}/base/v1", {"x-name": "a\r\nx-evil: 1", "x-other": "ü漢"}, b"")
        answer.close()

    assert heads[0].startswith(b"POST /base/v1 HTTP/1.1\r\nhost: 127.0.0.1:")
    assert b"x-name: ax-evil: 1\r\n" in heads[0]
    assert b"\r\nx-evil" not in heads[0]
