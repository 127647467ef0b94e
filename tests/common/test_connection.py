"""What a client may do to a server, and what it is told that does more."""

import asyncio
import hashlib
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress

import pytest
from fastapi import FastAPI, Request

from common.web import connection
from common.web.connection import Flag
from tests.common.telling import HEAD, Told, connected
from tests.serving import served


@asynccontextmanager
async def dripping(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """A byte now and then, as long as anybody takes them."""

    async def drip() -> None:
        with suppress(ConnectionError):
            while True:
                writer.write(b"x")
                await writer.drain()
                await asyncio.sleep(0.02)

    slowly = asyncio.create_task(drip())
    try:
        yield
    finally:
        slowly.cancel()


async def refusal(reader: asyncio.StreamReader) -> tuple[int, str]:
    """Status and code of an answer after which the server hangs up."""
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert b"connection: close" in head.lower()
    return int(head.split()[1]), json.loads(body)["error"]["code"]


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


async def test_a_client_whose_head_is_too_large_is_told_so():
    async with served(Told().app) as url, asyncio.timeout(10):
        reader, writer = await connected(url)
        writer.write(b"GET / HTTP/1.1\r\nx-large: " + b"x" * 5_000_000)
        assert await refusal(reader) == (431, "head_too_large")
        writer.close()


async def test_a_client_whose_head_is_long_in_coming_is_sent_away(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connection, "HEAD_WITHIN_S", 0.2)
    async with served(Told().app) as url, asyncio.timeout(10):
        stops, waiting = await connected(url)
        waiting.write(b"POST / HT")
        drips, slow = await connected(url)
        slow.write(b"POST / HTTP/1.1\r\nx-endless: ")
        async with dripping(slow):
            for reader in (stops, drips):
                assert await refusal(reader) == (408, "request_timeout")
        waiting.close()
        slow.close()


@pytest.mark.parametrize("drips", [False, True], ids=["stops", "drips"])
async def test_a_client_whose_body_is_long_in_coming_is_told_so_and_its_work_ends(drips: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connection, "BODY_WITHIN_S", 0.2)
    told = Told()
    async with served(told.app) as url, asyncio.timeout(10):
        reader, writer = await connected(url)
        writer.write(HEAD % 1_000_000 + b"x")
        await told.begun.wait()
        async with dripping(writer) if drips else nullcontext():
            assert await refusal(reader) == (408, "request_timeout")
            await told.left.wait()
        writer.close()


async def test_a_body_that_keeps_coming_fast_enough_may_take_its_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connection, "BODY_WITHIN_S", 0.2)
    told = Told()
    async with served(told.app) as url, asyncio.timeout(10):
        late, stops = await connected(url)
        stops.write(HEAD % 2 + b"x")
        reader, writer = await connected(url)
        writer.write(HEAD % 20_000)
        writer.write(b"x" * 10_000)  # Pays for a second more.

        assert await refusal(late) == (408, "request_timeout")
        writer.write(b"x" * 10_000)
        told.let.set()

        assert b" 200 " in await reader.readline()
        writer.close()
        stops.close()


async def test_a_client_that_waits_for_the_server_to_read_on_is_not_late(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connection, "BODY_WITHIN_S", 0.2)
    monkeypatch.setattr(connection, "LEAST_BYTES_PER_S", 1e9)
    read_on, behind, sent_bytes = asyncio.Event(), asyncio.Event(), 1_000_000
    app = FastAPI()

    @app.post("/")
    async def answer(request: Request) -> int:
        read_bytes = 0
        async for chunk in request.stream():
            behind.set()
            await read_on.wait()
            read_bytes += len(chunk)
        return read_bytes

    async with served(app) as url, asyncio.timeout(10):
        reader, writer = await connected(url)
        writer.write(HEAD % sent_bytes + b"x" * sent_bytes)
        await behind.wait()
        late, stops = await connected(url)
        stops.write(HEAD % 2 + b"x")
        assert await refusal(late) == (408, "request_timeout")

        read_on.set()

        assert b" 200 " in await reader.readline()
        await reader.readuntil(str(sent_bytes).encode())
        writer.close()
        stops.close()


async def test_a_client_that_was_refused_while_its_body_came_cannot_stay_by_sending_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connection, "BODY_WITHIN_S", 0.2)
    async with served(FastAPI(), silent_s=60) as url, asyncio.timeout(10):
        reader, writer = await connected(url)
        writer.write(HEAD % 1_000_000 + b"x")
        assert b" 404 " in await reader.readline()
        async with dripping(writer):
            with suppress(ConnectionError):
                await reader.read()
        writer.close()


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


@pytest.fixture
async def digesting() -> AsyncIterator[str]:
    """An app that answers with the digest of what it was sent."""
    app = FastAPI()

    @app.post("/")
    async def answer(request: Request) -> str:
        return hashlib.sha256(await request.body()).hexdigest()

    async with served(app) as url, asyncio.timeout(10):
        yield url


@pytest.mark.parametrize("size", [connection.LARGE_BYTES - 1, connection.LARGE_BYTES, 1_000_003])
@pytest.mark.parametrize("first_bytes", [0, 1, 300_000], ids=["head alone", "with a byte", "with more"])
async def test_a_large_body_comes_as_it_was_sent_and_so_do_the_requests_behind_it(digesting: str, size: int, first_bytes: int):
    bodies = [random.Random(size + number).randbytes(size) for number in range(2)]
    reader, writer = await connected(digesting)
    # Head and body in pieces; what follows them in the same as their end.
    writer.write(HEAD % size + bodies[0][:first_bytes])
    writer.write(bodies[0][first_bytes:] + HEAD % size + bodies[1] + HEAD % 1 + b"x")

    for body in (*bodies, b"x"):
        assert b" 200 " in await reader.readline()
        await reader.readuntil(hashlib.sha256(body).hexdigest().encode() + b'"')
    writer.close()


def request_of(drawn: random.Random) -> tuple[bytes, bytes]:
    """As it is sent, and its body."""
    body = drawn.choice((b"\r\n", b"POST / HTTP/1.1\r\n", b"0\r\n\r\n", drawn.randbytes(9))) * drawn.randrange(30)
    if drawn.random() < 0.6:
        return HEAD % len(body) + body, body
    at = drawn.randrange(len(body) + 1)
    pieces = [piece for piece in (body[:at], body[at:]) if piece]
    return CHUNKED + b"".join([b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]) + b"0\r\n\r\n", body


@pytest.mark.parametrize("seed", range(12))
async def test_however_requests_are_cut_each_has_its_own_body(digesting: str, seed: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connection, "LARGE_BYTES", 8)
    drawn = random.Random(seed)
    sent, bodies = zip(*[request_of(drawn) for _ in range(40)], strict=True)
    stream = b"".join(sent)
    reader, writer = await connected(digesting)

    async def send() -> None:
        at = 0
        while at < len(stream):
            end = at + drawn.choice((1, 2, 7, 60, 200, 2000))
            writer.write(stream[at:end])
            await writer.drain()
            at = end
            await asyncio.sleep(0)  # So that the server may read this before the next.

    sending = asyncio.create_task(send())
    for body in bodies:
        assert b" 200 " in await reader.readline()
        answer = await reader.readuntil(b'"')
        assert b"content-length: 66\r\n" in answer
        assert await reader.readexactly(65) == hashlib.sha256(body).hexdigest().encode() + b'"'
    await sending
    writer.close()


async def test_a_client_that_asks_whether_it_may_send_a_large_body_is_told_to_go_on(digesting: str):
    body = bytes(1_000_000)
    reader, writer = await connected(digesting)
    writer.write((HEAD % len(body)).replace(b"host: x", b"host: x\r\nexpect: 100-continue"))
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"

    writer.write(body)

    assert b" 200 " in await reader.readline()
    await reader.readuntil(hashlib.sha256(body).hexdigest().encode())
    writer.close()


async def test_what_follows_a_large_body_that_nobody_read_is_the_next_request():
    async with served(FastAPI()) as url, asyncio.timeout(10):
        reader, writer = await connected(url)
        for _ in range(2):
            writer.write(HEAD % 1_000_000)
            assert b" 404 " in await reader.readline()
            writer.write(bytes(1_000_000))
            await reader.readuntil(b"}")
        writer.close()


HIDDEN = b"GET /hidden HTTP/1.1\r\nhost: x\r\n\r\n"
"""What must stay a part of another request, whoever between us and the client reads that otherwise."""


def posted(headers: bytes, body: bytes = HIDDEN) -> bytes:
    return b"POST / HTTP/1.1\r\nhost: x\r\n" + headers + b"\r\n\r\n" + body


LENGTH = b"content-length: %d" % len(HIDDEN)
CHUNKS = b"transfer-encoding: chunked"
NO_HTTP = {
    "length and chunks": posted(b"content-length: 5\r\n" + CHUNKS, b"0\r\n\r\n" + HIDDEN),
    "chunks and length": posted(CHUNKS + b"\r\ncontent-length: 5", b"0\r\n\r\n" + HIDDEN),
    "chunks and a large length": posted(CHUNKS + b"\r\ncontent-length: 900000", b"0\r\n\r\n" + HIDDEN + bytes(900_000)),
    "two lengths": posted(b"content-length: 0\r\n" + LENGTH),
    "the same length twice": posted(LENGTH + b"\r\n" + LENGTH),
    "a list of lengths": posted(b"content-length: 0, %d" % len(HIDDEN)),
    "a length with a sign": posted(b"content-length: +%d" % len(HIDDEN)),
    "a negative length": posted(b"content-length: -1"),
    "a length in hexadecimal": posted(b"content-length: 0x10"),
    "a length of two words": posted(b"content-length: 0 %d" % len(HIDDEN)),
    "an empty length": posted(b"content-length:"),
    "a length beyond numbers": posted(b"content-length: 99999999999999999999999"),
    "a space behind a name": posted(b"content-length : 0"),
    "a control character": posted(b"content-length: \x0b%d" % len(HIDDEN)),
    "a coding that is none": posted(b"transfer-encoding: xchunked\r\n" + LENGTH),
    "a coding behind the chunks": posted(b"transfer-encoding: chunked, identity", b"0\r\n\r\n" + HIDDEN),
    "chunks twice": posted(CHUNKS + b"\r\n" + CHUNKS, b"0\r\n\r\n" + HIDDEN),
    "chunks in quotes": posted(b'transfer-encoding: "chunked"', b"0\r\n\r\n" + HIDDEN),
    "chunks on the next line": posted(b"transfer-encoding:\r\n chunked", b"0\r\n\r\n" + HIDDEN),
    "a size with a prefix": posted(CHUNKS, b"0x5\r\nabcde\r\n0\r\n\r\n" + HIDDEN),
    "a negative size": posted(CHUNKS, b"-5\r\nabcde\r\n0\r\n\r\n" + HIDDEN),
    "a size and a space": posted(CHUNKS, b"5 \r\nabcde\r\n0\r\n\r\n" + HIDDEN),
    "a size beyond numbers": posted(CHUNKS, b"10000000000000000\r\n" + HIDDEN),
    "a size without a return": posted(CHUNKS, b"5\nabcde\r\n0\r\n\r\n" + HIDDEN),
    "a line within a size": posted(CHUNKS, b"5;\nabcde\r\n0\r\n\r\n" + HIDDEN),
    "a chunk too long": posted(CHUNKS, b"5\r\nabcdefgh\r\n0\r\n\r\n" + HIDDEN),
    "lines without returns": b"POST / HTTP/1.1\nhost: x\ncontent-length: 0\n\n" + HIDDEN,
    "a return without a line": posted(b"x: y\rcontent-length: %d" % len(HIDDEN)),
    "a zero byte": posted(b"x: a\x00b"),
    "a space in a name": posted(b"x y: 1"),
    "a space before a name": posted(b" x: 1"),
    "a line without a colon": posted(b"content-length 5"),
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + HIDDEN,
    "HTTP of the future": b"POST / HTTP/1.2\r\nhost: x\r\n\r\n" + HIDDEN,
    "a proxy's request": b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n" + HIDDEN,
    "no words": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


@pytest.mark.parametrize("raw", NO_HTTP.values(), ids=NO_HTTP)
async def test_what_two_could_read_in_two_ways_is_answered_once_with_a_400(raw: bytes):
    app, asked = FastAPI(), list[str]()
    app.post("/")(lambda: asked.append("shown"))
    app.get("/hidden")(lambda: asked.append("hidden"))
    async with served(app) as url, asyncio.timeout(10):
        reader, writer = await connected(url)
        writer.write(raw)
        assert await refusal(reader) == (400, "invalid_http")
        writer.close()
    assert "hidden" not in asked


async def test_what_is_no_http_behind_a_request_does_not_keep_that_from_its_answer():
    told = Told()
    async with served(told.app) as url, asyncio.timeout(10):
        reader, writer = await connected(url)
        writer.write(HEAD % 0 + b"no http\r\n\r\n")
        await told.begun.wait()
        told.let.set()

        answer = await reader.read()

        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.count(b"HTTP/1.1") == 1
        writer.close()


async def test_a_body_that_is_no_http_gets_no_second_answer():
    async with served(FastAPI()) as url, asyncio.timeout(10):
        reader, writer = await connected(url)
        writer.write(CHUNKED)
        assert b" 404 " in await reader.readline()
        await reader.readuntil(b"}")

        writer.write(b"no size\r\n")

        assert await reader.read() == b""
        writer.close()


# As Java's own client asks, which LangChain4j and Spring use, and `curl --http2`.
WISH = b"connection: Upgrade, HTTP2-Settings\r\nhttp2-settings: AAEAAEAAAAIAAAAA\r\nupgrade: h2c"


@pytest.mark.parametrize("size", [0, 50, 1_000_000])
@pytest.mark.parametrize("in_chunks", [False, True], ids=["of known length", "in chunks"])
async def test_a_client_that_would_rather_speak_http_2_is_answered_all_the_same(digesting: str, size: int, in_chunks: bool):
    body = random.Random(size).randbytes(size)
    reader, writer = await connected(digesting)
    for _ in range(2):
        if in_chunks:
            writer.write(posted(WISH + b"\r\n" + CHUNKS, (b"%x\r\n%b\r\n" % (size, body) if size else b"") + b"0\r\n\r\n"))
        else:
            writer.write(posted(WISH + b"\r\ncontent-length: %d" % size, body))
    for _ in range(2):
        assert b" 200 " in await reader.readline()
        await reader.readuntil(hashlib.sha256(body).hexdigest().encode() + b'"')
    writer.close()


async def test_a_client_that_would_rather_have_a_web_socket_is_told_that_there_is_none(digesting: str):
    reader, writer = await connected(digesting)
    for _ in range(2):
        writer.write(b"GET /socket HTTP/1.1\r\nhost: x\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n")
        assert b" 404 " in await reader.readline()
        await reader.readuntil(b"}")
    writer.close()


async def test_a_wish_to_upgrade_leaves_the_other_wishes_of_a_connection(digesting: str):
    reader, writer = await connected(digesting)
    writer.write(posted(WISH.replace(b"Upgrade,", b"Upgrade, close,") + b"\r\ncontent-length: 1", b"x"))
    answer = await reader.read()
    assert b" 200 " in answer
    assert b"connection: close" in answer.lower()
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
