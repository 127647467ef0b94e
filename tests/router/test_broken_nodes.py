"""A node that breaks the rules of the wire costs no client an answer, and no run is begun twice for it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import structlog

from common.catalog import RunStatus
from common.images_api import Task, read_json_request
from common.logs import bound
from common.node_api import ATTEMPT_HEADER, RUN_ID_HEADER
from router import relay
from tests.fakes.node import MODEL, FakeNode, run_of
from tests.router.conftest import House, MakeHouse, until

JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-run-id: THIS_RUN\r\n"
ANSWER = b'{"data":[{"b64_json":"AAAA"}]}'
DRIP_EVERY_S = 0.05


class BrokenNode:
    """Says all the right things about itself, and `answers` to runs: bytes, after which it closes. Empty: a reset.

    drips: more of them follow, one by one, for as long as somebody listens.
    """

    def __init__(self, house: House, *, answer: bytes, begins: bool, drips: bool = False) -> None:
        self._house = house
        self._answer = answer
        self._begins = begins
        self._drips = drips
        self.asked = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                if head.startswith("GET"):
                    status = FakeNode("broken", self._house.catalog, None, [MODEL]).status().model_dump_json().encode()  # type: ignore[arg-type]
                    writer.write(JSON + b"content-length: %d\r\n\r\n" % len(status) + status)
                    continue
                headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
                asked = read_json_request(Task.GENERATION, await reader.readexactly(int(headers["content-length"])))
                self.asked += 1
                if self._begins:
                    attempt = int(headers[ATTEMPT_HEADER])
                    await self._house.catalog.runs.take_on(run_of(headers, asked), attempt, node="broken")
                writer.write(self._answer.replace(b"THIS_RUN", headers[RUN_ID_HEADER].encode()))
                await writer.drain()
                while self._drips and not writer.is_closing():
                    writer.write(b" ")
                    await asyncio.sleep(DRIP_EVERY_S)
                if not self._answer:
                    writer.transport.abort()
                return
        except (OSError, EOFError):
            return
        finally:
            writer.close()


@asynccontextmanager
async def broken(house: House, answer: bytes, *, begins: bool, drips: bool = False) -> AsyncIterator[BrokenNode]:
    """The node, registered as `broken` and online."""
    node = BrokenNode(house, answer=answer, begins=begins, drips=drips)
    server = await asyncio.start_server(node.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    added = await house.client.post("/admin/nodes", json={"name": "broken", "url": url})
    assert added.json()["state"] == "online"
    try:
        yield node
    finally:
        await house.client.delete("/admin/nodes/broken")
        server.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-le",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        JSON + b"content-length: 3\r\ncontent-length: 4\r\n\r\n{}",
        JSON + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        JSON + b"content-encoding: gzip\r\ncontent-length: 2\r\n\r\n{}",
        JSON + b"x-filler: " + b"1" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 13\r\n\r\n<html></html>",
        JSON.replace(b"THIS_RUN", b"run_of_another") + b"content-length: %d\r\n\r\n" % len(ANSWER) + ANSWER,
        b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:9/\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/html\r\ncontent-length: 13\r\n\r\n<html></html>",
        b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 404 Not Found\r\ncontent-length: 9\r\n\r\nnot found",
        b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 99999\r\ncontent-length: 5\r\n\r\nsorry",
    ],
    ids=[
        "reset",
        "cut head",
        "not http",
        "two lengths",
        "cl te",
        "gzip",
        "head",
        "html",
        "another's",
        "redirect",
        "400",
        "401",
        "404",
        "503",
    ],
)
async def test_another_node_answers_for_one_that_breaks_the_rules(make_house: MakeHouse, answer: bytes):
    # Patient: on a busy machine a look at the good node may fail, too.
    house = await make_house("good", no_capacity_wait_s=20)
    house.nodes["good"].faults.seconds = 0.2
    async with broken(house, answer, begins=False) as node:
        replies = await asyncio.gather(*(house.generate(seed=number) for number in range(3)))

        assert [reply.status_code for reply in replies] == [200] * 3
        assert node.asked >= 1
    assert len(house.nodes["good"].started) == 3


async def test_a_run_that_was_lost_before_it_began_goes_to_another_node_at_once(make_house: MakeHouse):
    house = await make_house("good")
    async with broken(house, b"", begins=False) as node:
        house.nodes["good"].faults.seconds = 1
        first, second = [asyncio.create_task(house.generate()) for _ in range(2)]

        replies = await asyncio.gather(first, second)

        assert [reply.status_code for reply in replies] == [200, 200]
        runs = [await house.catalog.runs.get(reply.json()["id"]) for reply in replies]
        assert node.asked == sum(attempt.node == "broken" for run in runs for attempt in run.attempts) >= 1
        assert all([attempt.node for attempt in run.attempts].count("broken") <= 1 for run in runs)


async def test_a_run_that_a_living_node_began_and_lost_is_not_begun_again(make_house: MakeHouse):
    house = await make_house()
    async with broken(house, b"", begins=True) as node:
        reply = await house.generate()

        assert (reply.status_code, reply.json()["error"]["code"]) == (502, "node_failed")
        assert reply.headers["x-should-retry"] == "false"
        assert node.asked == 1
    run = (await house.catalog.runs.list(limit=1))[0]
    assert (run.status, len(run.attempts)) == (RunStatus.FAILED, 1)


@pytest.mark.parametrize(
    "body",
    [
        b"content-length: 100000\r\n\r\n" + b"x" * 100_000,
        b"content-length: 100\r\n\r\n{",
        b"content-length: 20\r\n\r\n<html>nothing</html>",
        b"content-length: 0\r\n\r\n",
        b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
    ids=["too large", "cut", "html", "empty", "chunked"],
)
async def test_a_refusal_that_cannot_be_understood_is_the_nodes_own_trouble(make_house: MakeHouse, body: bytes):
    house = await make_house()
    async with broken(house, b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n" + body, begins=False):
        reply = await house.generate()

    run = (await house.catalog.runs.list(limit=1))[0]
    assert (reply.status_code, reply.headers[RUN_ID_HEADER]) == (502, run.id)
    assert reply.json()["error"]["code"] == "node_failed"
    assert run.status is RunStatus.FAILED


@pytest.mark.parametrize(
    "answer",
    [
        JSON + b"content-length: 5000000\r\n\r\n" + ANSWER,
        JSON + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(ANSWER), ANSWER),
        JSON + b"transfer-encoding: chunked\r\n\r\n%x\r\n%b\r\nzz\r\n" % (len(ANSWER), ANSWER),
    ],
    ids=["short", "no last chunk", "bad chunk"],
)
async def test_an_answer_that_breaks_off_is_never_whole_to_the_client(make_house: MakeHouse, answer: bytes):
    house = await make_house()
    async with broken(house, answer, begins=True):
        with pytest.raises(httpx.RemoteProtocolError):
            await house.generate()


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n",
        JSON + b'content-length: 4\r\n\r\n{"da',
        b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 13\r\n\r\n<html></html>",
        b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 5\r\n\r\n\x00\x01\xff\xfe\x00",
    ],
    ids=["not http", "json of another run", "html", "binary error"],
)
async def test_an_error_for_garbage_of_a_node_names_its_run_to_the_client_and_in_the_log(make_house: MakeHouse, answer: bytes):
    house = await make_house()
    async with broken(house, answer.replace(b"THIS_RUN", b"run_of_another"), begins=False):
        with structlog.testing.capture_logs(processors=[lambda _, __, line: bound() | line]) as lines:
            reply = await house.generate()
            house.services.later.catch_up()

    run = (await house.catalog.runs.list(limit=1))[0]
    assert (reply.status_code, reply.headers[RUN_ID_HEADER]) == (502, run.id)
    assert run.status is RunStatus.FAILED
    told = {line["event"]: (line.get("run_id"), line.get("node")) for line in lines}
    assert told["attempt_failed"] == told["request"] == (run.id, "broken")


async def test_a_body_that_drips_is_given_up_while_others_are_answered(make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(relay, "BODY_SILENCE_S", 1.0)
    house = await make_house("good")
    for length in (1_000, 5_000_000):  # One that is read, and one that is poured.
        head = JSON + b"content-length: %d\r\n\r\n" % length
        async with broken(house, head + ANSWER, begins=True, drips=True) as node:
            asking = [asyncio.create_task(house.generate(seed=number)) for number in range(4)]
            async with asyncio.timeout(20):
                replies = await asyncio.gather(*asking, return_exceptions=True)

            assert node.asked >= 1
            cut = [reply for reply in replies if isinstance(reply, httpx.RemoteProtocolError)]
            whole = [reply for reply in replies if isinstance(reply, httpx.Response)]
            assert len(cut) == node.asked
            assert [reply.status_code for reply in whole] == [200] * (len(replies) - node.asked)
        failed = [run for run in await house.catalog.runs.list(limit=4) if run.status is RunStatus.FAILED]
        assert [run.error_code for run in failed] == ["node_failed"] * node.asked


async def test_a_stream_that_drips_ends_with_an_error_when_its_run_has_had_its_time(
    make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(relay, "BODY_SILENCE_S", 0.5)
    house = await make_house(run_timeout_s=1)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n1\r\n:\r\n"
    async with broken(house, head + b"fffff\r\n: ", begins=True, drips=True):
        async with asyncio.timeout(10):
            reply = await house.generate(stream=True)

    assert reply.status_code == 200
    assert b"event: error" in reply.content
    run = await house.catalog.runs.get(reply.headers[RUN_ID_HEADER])
    assert (run.status, run.error_code) == (RunStatus.FAILED, "node_failed")


async def test_bytes_beyond_an_answer_reach_no_other_client(make_house: MakeHouse):
    house = await make_house()
    whole = JSON + b"content-length: %d\r\n\r\n" % len(ANSWER) + ANSWER
    async with broken(house, whole + whole.replace(b"AAAA", b"EVIL"), begins=False) as node:
        bodies = [(await house.generate()).content for _ in range(5)]

        assert bodies == [ANSWER] * 5
        assert node.asked == 5


async def test_a_request_in_the_queue_ends_when_its_client_leaves_and_never_reaches_a_node(make_house: MakeHouse):
    house = await make_house("a", node_depth=0)
    house.nodes["a"].faults.seconds = 1
    first = asyncio.create_task(house.generate())
    await until(lambda: bool(house.nodes["a"].jobs))
    second = asyncio.create_task(house.generate())
    await until(lambda: len(house.services.queue) == 1)

    second.cancel()
    await until(lambda: len(house.services.queue) == 0, within_s=0.5)

    assert (await first).status_code == 200
    assert (await house.generate()).status_code == 200
    assert len(house.nodes["a"].started) == 2
    statuses = [run.status for run in await house.catalog.runs.list()]
    assert sorted(statuses) == [RunStatus.CANCELLED, RunStatus.SUCCEEDED, RunStatus.SUCCEEDED]
