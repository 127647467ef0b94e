"""Long bodies that the kernel moves from a node's socket to a client's: whole, in order, and never past their end."""

import asyncio
import os
import socket
import sys
from collections.abc import Iterator

import httpx
import pytest

from router import wire
from router.wire import connection as limits
from router.wire import pouring
from tests.router.conftest import MakeHouse, until
from tests.router.test_broken_nodes import JSON, broken
from tests.router.test_wire import node, request_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="splice(2) is Linux's")

CONTENT = os.urandom(3_000_000)
HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n"
PATIENCE = wire.Patience(5.0)


class Socket:
    """A sink with nothing behind it but its socket."""

    def __init__(self, of: socket.socket) -> None:
        self.fd = of.fileno()
        self.count = 0

    def took(self, count: int) -> None:
        self.count += count


class Pair:
    """Two ends of one connection: what is poured into one is read at the other."""

    def __init__(self) -> None:
        self._near, self._far = socket.socketpair()
        self._near.setblocking(False)
        self._far.setblocking(False)
        self.sink = Socket(self._near)

    async def read(self, count: int) -> bytes:
        content = b""
        while len(content) < count:
            content += await asyncio.get_running_loop().sock_recv(self._far, 1 << 20)
        return content

    def leave(self) -> None:
        self._far.close()

    def close(self) -> None:
        self._near.close()
        self._far.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


async def test_a_body_is_poured_whole_and_its_connection_carries_the_next(pool: wire.Pool, pair: Pair):
    connections = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while await request_of(reader):
            writer.write(HEAD % len(CONTENT) + CONTENT)

    async with node(script) as url:
        for _ in range(3):
            answer = await pool.post(url, {}, b"")
            assert answer.can_pour
            _, read = await asyncio.gather(answer.pour(pair.sink, PATIENCE), pair.read(len(CONTENT)))
            assert [chunk async for chunk in answer.chunks(PATIENCE)] == []
            answer.close()
            assert read == CONTENT
    assert pair.sink.count == 3 * len(CONTENT)
    assert connections == 1


async def test_what_is_not_poured_can_be_read(pool: wire.Pool):
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(HEAD % len(CONTENT))
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(CONTENT)
        await reader.read()

    async with node(script) as url:
        answer = await pool.post(url, {}, b"")
        assert answer.can_pour
        assert b"".join([chunk async for chunk in answer.chunks(PATIENCE)]) == CONTENT
        answer.close()


@pytest.mark.parametrize(
    ("head", "why"),
    [
        (HEAD % (pouring.LEAST_BYTES // 2), "too short"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + b"100000\r\n" + b"x" * 1000, "of no known length"),
    ],
)
async def test_other_bodies_are_read(pool: wire.Pool, head: bytes, why: str):
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(head)
        await reader.read()

    async with node(script) as url:
        answer = await pool.post(url, {}, b"")
        assert not answer.can_pour, why
        answer.close()


@pytest.mark.parametrize("reset", [False, True])
async def test_where_a_poured_body_ends_too_early_is_known_to_the_byte(pool: wire.Pool, pair: Pair, reset: bool):
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(HEAD % len(CONTENT) + CONTENT[:2_000_000])
        await writer.drain()
        if reset:
            writer.transport.abort()

    async with node(script) as url:
        answer = await pool.post(url, {}, b"")
        reading = asyncio.create_task(pair.read(len(CONTENT)))
        await answer.pour(pair.sink, PATIENCE)
        with pytest.raises(wire.Broken):
            assert [chunk async for chunk in answer.chunks(PATIENCE)] == []
        answer.close()
        reading.cancel()
    assert answer.taken_bytes == pair.sink.count
    assert pair.sink.count <= 2_000_000 if reset else pair.sink.count == 2_000_000


async def test_bytes_beyond_a_poured_body_are_nobodys(pool: wire.Pool, pair: Pair):
    evil, connections = b"EVIL" * 1000, 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while await request_of(reader):
            writer.write(HEAD % len(CONTENT) + CONTENT + evil)

    async with node(script) as url:
        for number in (1, 2, 3):
            answer = await pool.post(url, {}, b"")
            _, read = await asyncio.gather(answer.pour(pair.sink, PATIENCE), pair.read(len(CONTENT)))
            answer.close()
            assert read == CONTENT
            assert connections == number


async def test_a_poured_body_that_trickles_is_given_up_but_a_slow_reader_is_not(pool: wire.Pool, pair: Pair):
    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(HEAD % len(CONTENT))
        while not writer.is_closing():
            writer.write(b"x")
            await asyncio.sleep(0.02)

    async with node(trickle) as url:
        answer = await pool.post(url, {}, b"")
        await answer.pour(pair.sink, wire.Patience(0.3, 64 * 1024))
        with pytest.raises(wire.Broken, match="slowly"):
            assert [chunk async for chunk in answer.chunks(PATIENCE)] == []
        answer.close()
        assert 0 < pair.sink.count < 1000

    async def whole(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(HEAD % len(CONTENT) + CONTENT)
        await reader.read()

    slow = Pair()
    async with node(whole) as url:
        answer = await pool.post(url, {}, b"")
        pouring_on = asyncio.create_task(answer.pour(slow.sink, wire.Patience(0.3)))
        await asyncio.sleep(0.8)
        assert await slow.read(len(CONTENT)) == CONTENT
        await pouring_on
        assert [chunk async for chunk in answer.chunks(wire.Patience(0.3))] == []
        answer.close()
    slow.close()


async def test_whoever_pours_is_told_that_nobody_reads(pool: wire.Pool, pair: Pair):
    told = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request_of(reader)
        writer.write(HEAD % 10**9 + CONTENT)
        try:
            await reader.read()
        finally:
            told.set()

    async with node(script) as url:
        answer = await pool.post(url, {}, b"")
        pouring_on = asyncio.create_task(answer.pour(pair.sink, PATIENCE))
        await pair.read(1000)
        pair.leave()
        with pytest.raises(wire.SinkGone):
            await pouring_on
        answer.close()
        async with asyncio.timeout(1):
            await told.wait()


async def test_descriptors_are_given_back(pool: wire.Pool, pair: Pair):
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await request_of(reader):
            writer.write(HEAD % len(CONTENT) + CONTENT)

    async with node(script) as url:
        counts = []
        for _ in range(4):
            answer = await pool.post(url, {}, b"")
            await asyncio.gather(answer.pour(pair.sink, PATIENCE), pair.read(len(CONTENT)))
            answer.close()
            counts.append(len(os.listdir("/proc/self/fd")))
        assert max(counts) - min(counts) <= 1
        cut = asyncio.create_task((await pool.post(url, {}, b"")).pour(pair.sink, PATIENCE))
        await pair.read(100)
        cut.cancel()
        await asyncio.gather(cut, return_exceptions=True)
        assert len(os.listdir("/proc/self/fd")) <= counts[0]


async def test_what_a_body_left_behind_on_its_way_is_in_no_other(pool: wire.Pool):
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await request_of(reader):
            writer.write(HEAD % len(CONTENT) + CONTENT)

    async with node(script) as url:
        for _ in range(3):
            stalled, whole = Pair(), Pair()
            cut = asyncio.create_task((await pool.post(url, {}, b"")).pour(stalled.sink, PATIENCE))
            await until(lambda stalled=stalled: stalled.sink.count > limits.READ_BYTES)
            cut.cancel()
            await asyncio.gather(cut, return_exceptions=True)

            answer = await pool.post(url, {}, b"")
            _, read = await asyncio.gather(answer.pour(whole.sink, PATIENCE), whole.read(len(CONTENT)))
            answer.close()
            assert read == CONTENT
            stalled.close()
            whole.close()


def test_pipes_are_kept_while_they_are_empty_and_few_until_all_are_closed():
    pipes = pouring.Pipes()
    before = len(os.listdir("/proc/self/fd"))
    taken = [pipes.take() for _ in range(pouring.MAX_IDLE_PIPES + 2)]
    assert len(set(taken)) == len(taken)
    for ends in taken:
        pipes.give_back(ends, empty=True)
    assert len(os.listdir("/proc/self/fd")) == before + 2 * pouring.MAX_IDLE_PIPES

    left, late = pipes.take(), pipes.take()
    os.write(left[1], b"the rest of a picture")
    pipes.give_back(left, empty=False)
    assert len(os.listdir("/proc/self/fd")) == before + 2 * (pouring.MAX_IDLE_PIPES - 1)

    pipes.close()
    pipes.give_back(late, empty=True)
    assert len(os.listdir("/proc/self/fd")) == before


# Through a whole router.

LONG = b'{"data":[{"b64_json":"' + b"A" * 3_000_000 + b'"}]}'
WHOLE = JSON + b"content-length: %d\r\n\r\n" % len(LONG) + LONG


async def test_clients_get_long_answers_whole_one_after_another_on_one_connection(make_house: MakeHouse):
    house = await make_house()
    async with broken(house, WHOLE, begins=False) as raw, httpx.AsyncClient(base_url=house.url) as client:
        client.headers["authorization"] = house.client.headers["authorization"]
        for _ in range(3):
            reply = await client.post("/v1/images/generations", json={"prompt": "a cat"})
            assert (reply.status_code, reply.content) == (200, LONG)
            assert (await client.get("/health")).status_code == 200
        assert raw.asked == 3
    told = (await house.client.get("/metrics")).text
    assert 'method="POST",route="/v1/images/generations",status="2xx"} 3.0' in told


async def test_a_long_answer_that_breaks_off_is_never_whole_to_the_client(make_house: MakeHouse):
    house = await make_house()
    async with broken(house, WHOLE[:-1_000_000], begins=True):
        with pytest.raises(httpx.RemoteProtocolError):
            await house.generate()


async def test_a_client_that_leaves_in_the_middle_of_a_long_answer_frees_its_node(make_house: MakeHouse):
    house = await make_house()
    endless = JSON + b"content-length: 900000000\r\n\r\n" + b"A" * 50_000_000
    async with (
        broken(house, endless, begins=False),
        house.client.stream("POST", "/v1/images/generations", json={"prompt": "a cat"}) as reply,
    ):
        assert reply.status_code == 200
        opened = house.services.client._pool._open
        assert sum(not connection._idle for connection in opened) >= 1
        await reply.aclose()
        await until(lambda: not any(connection._held_back for connection in opened), within_s=2)
    assert (await house.client.get("/health")).status_code == 200
