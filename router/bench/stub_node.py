"""A node without a device for measurements: our wire, answers of any size, and nothing that would cost it CPU.

The name of the model says what a request gets: `bench-1400k` an answer of 1.4 MB, `bench-20k-slow` one after
three seconds, `bench-400k-events` four events 100 ms apart, `bench-20k-reset` begins and cuts the connection,
`bench-20k-503` refuses. So any router can stand before it. `GET /stats` tells what happened, `POST /reset` forgets it.
"""

import argparse
import asyncio
import base64
import os
import re
import time
from typing import Any

import httptools
import orjson
import uvloop

from common.catalog import Catalog, NewRun
from common.node_api import ATTEMPT_HEADER, REQUEST_ID_HEADER, RUN_ID_HEADER, DeviceStatus, ModelStatus, NodePhase, NodeStatus
from common.state_lines import SAID_EVERY_S, line_of

SIZES_KB = (20, 1400, 6000)
KINDS = ("", "-slow", "-events", "-reset", "-503")
EVENTS = 4
EVENTS_APART_S = 0.1
SLOW_S = 3.0
_NAME = re.compile(rb"bench-(\d+)k(?:-(slow|events|reset|503))?")
_SEARCHED_BYTES = 64 * 1024


def model(size_kb: int, kind: str = "") -> str:
    """The name that stands for an answer of this size and kind."""
    return f"bench-{size_kb}k{kind}"


def status() -> NodeStatus:
    """What a router is told: room for all, and every model resident."""
    names = [model(size, kind) for size in (*SIZES_KB, 400) for kind in KINDS]
    return NodeStatus(
        name="stub",
        version="0",
        phase=NodePhase.READY,
        device=DeviceStatus(kind="cpu", name="stub", memory_total_bytes=1, memory_free_bytes=1),
        models=[
            ModelStatus(id=name, family="stub", profile="stub", tasks=["generation", "edit"], created=0, resident=True)
            for name in names
        ],
        jobs=[],
        max_concurrency=512,
        max_queued=512,
        seconds_per_unit=dict.fromkeys(names, 0.001),
    )


class Answers:
    """What is said, each made once."""

    def __init__(self) -> None:
        self._status = _whole(status().model_dump_json().encode())
        self._pictures: dict[int, bytes] = {}

    def status(self) -> bytes:
        """Of `GET /node/v1/status`."""
        return self._status

    def picture(self, size_kb: int) -> bytes:
        """The body of an answer with that much base64."""
        if size_kb not in self._pictures:
            head = b'{"created":1700000000,"output_format":"png","size":"1024x1024","data":[{"b64_json":"'
            self._pictures[size_kb] = head + _base64(size_kb) + b'"}]}'
        return self._pictures[size_kb]


def _base64(size_kb: int) -> bytes:
    return base64.b64encode(os.urandom(size_kb * 750))


def _head(length: int, status: bytes = b"200 OK", more: bytes = b"") -> bytes:
    return b"HTTP/1.1 %b\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n" % (status, more, length)


def _whole(body: bytes, status: bytes = b"200 OK", more: bytes = b"") -> bytes:
    return _head(len(body), status, more) + body


class Node(asyncio.Protocol):
    """One connection of a router."""

    def __init__(self, answers: Answers, told: dict[str, Any], catalog: Catalog | None) -> None:
        self._answers = answers
        self._told = told
        self._catalog = catalog
        self._work: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._parser = httptools.HttpRequestParser(self)

    def connection_lost(self, error: Exception | None) -> None:
        if self._telling is not None:
            self._telling.cancel()
        if self._work is not None and not self._work.done():
            self._work.cancel()
            self._told["left_at_ns"].append(time.monotonic_ns())

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._url, self._body = b"", b""
        self._headers: dict[str, str] = {}

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower().decode()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        if len(self._body) < _SEARCHED_BYTES:
            self._body += body[:_SEARCHED_BYTES]

    def on_message_complete(self) -> None:
        if self._url == b"/stats":
            self._transport.write(_whole(orjson.dumps(self._told)))
        elif self._url == b"/reset":
            self._told.update(fresh())
            self._transport.write(_whole(b"{}"))
        elif self._url == b"/node/v1/events":
            self._telling = asyncio.ensure_future(self._tell())
        elif self._parser.get_method() == b"GET":
            self._transport.write(self._answers.status())
        else:
            self._take()

    def _take(self) -> None:
        self._told["asked"] += 1
        named = _NAME.search(self._body)
        size_kb, kind = (int(named[1]), named[2]) if named else (20, None)
        if kind == b"503":
            error = b'{"error":{"message":"not now","type":"server_error","param":null,"code":null}}'
            self._transport.write(_whole(error, b"503 Service Unavailable", b"retry-after: 1\r\n"))
            return
        self._told["started"] += 1
        if kind is None:
            self._answer(size_kb)
            return
        work = {b"slow": self._slow, b"events": self._events, b"reset": self._reset}[kind]
        self._work = asyncio.ensure_future(work(size_kb))

    def _answer(self, size_kb: int) -> None:
        body, run_id = self._answers.picture(size_kb), self._headers.get(RUN_ID_HEADER)
        more = f"{RUN_ID_HEADER}: {run_id}\r\n".encode() if run_id is not None else b""
        # Joining would copy the body.
        self._transport.writelines((_head(len(body), more=more), body))

    async def _tell(self) -> None:
        """Our state, which never changes, and signs of life."""
        self._transport.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n")
        line = line_of(None, status())
        while True:
            self._transport.write(b"%x\r\n%b\r\n" % (len(line), line))
            await asyncio.sleep(SAID_EVERY_S)
            line = b"{}\n"

    async def _slow(self, size_kb: int) -> None:
        await asyncio.sleep(SLOW_S)
        self._answer(size_kb)

    async def _events(self, size_kb: int) -> None:
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        self._transport.write(head)
        content = _base64(size_kb)
        for index in range(EVENTS):
            await asyncio.sleep(EVENTS_APART_S)
            last = index == EVENTS - 1
            kind = b"image_generation." + (b"completed" if last else b"partial_image")
            shown = content if last else content[: len(content) // 8]
            event = b'event: %b\ndata: {"type":"%b","sent_ns":%d,"b64_json":"%b"}\n\n'
            event %= (kind, kind, time.monotonic_ns(), shown)
            self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))
        self._transport.write(b"0\r\n\r\n")

    async def _reset(self, size_kb: int) -> None:
        run_id = self._headers.get(RUN_ID_HEADER)
        if self._catalog is not None and run_id is not None:
            # As every node does when its device begins: so a router can know that it began.
            run = NewRun(
                id=run_id,
                task="generation",
                model=model(size_kb, "-reset"),
                prompt="",
                request={},
                request_id=self._headers[REQUEST_ID_HEADER],
                source="router",
            )
            await self._catalog.runs.take_on(run, int(self._headers[ATTEMPT_HEADER]), node="stub")
        self._work = None
        self._transport.abort()


def fresh() -> dict[str, Any]:
    """Nothing has happened yet. left_at_ns: when the asker of an unfinished run left, on the monotonic clock."""
    return {"asked": 0, "started": 0, "left_at_ns": []}


async def serve(port: int, database_url: str | None) -> None:
    """Until the process is ended."""
    catalog = await Catalog.open(database_url) if database_url else None
    answers, told = Answers(), fresh()
    for size in SIZES_KB:
        answers.picture(size)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Node(answers, told, catalog), "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


def main() -> None:
    """One stand-in as a process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--database-url")
    wanted = parser.parse_args()
    uvloop.run(serve(wanted.port, wanted.database_url))


if __name__ == "__main__":
    main()
