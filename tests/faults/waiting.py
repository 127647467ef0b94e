"""Many that wait at once, by hand: `python -m tests.faults.waiting --count 10000`.

A real router, one node that holds every run until told otherwise, and as many clients as told, each on a connection of its
own, of four keys in turn. Printed: the router's memory, the latency of `/health` from a process of its own, and how far
runs of one key came to the node out of their order. The goals: 400 MB, a p99 of 100 ms, and no run out of its order.

The order is told twice: that in which the router says that the requests came, by the ids of their runs, and that in which
the clients wrote them, which the router has no word in. Of connections that wait to be accepted nobody can say on which was
written first; so all are accepted, and have had an answer, before anything is written that is to be in an order.
"""

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Self

import httpx

from common.catalog import Catalog, migrate, sqlite_url
from common.node_api import REQUEST_ID_HEADER, RUN_ID_HEADER
from common.state_lines import SAID_EVERY_S, line_of
from router.bench.processes import memory_bytes
from tests.e2e.conftest import Machine, new_machine
from tests.fakes.node import MODEL, FakeNode
from tests.faults.estate import HEADERS, until

KEYS = 4
AT_ONCE = 8
"""Runs the node has at once, and as many more wait there."""
CONNECTING = 256
"""Clients that connect at once."""
WRITTEN_AHEAD = 64
"""Requests that are written in one go, before the router has put those before them in line."""
HELD_S = 10.0
"""How long all of them wait before the first is let go."""
LOOK_EVERY_S = 0.05
"""Between two questions to `/health`."""


@dataclass(frozen=True, slots=True)
class Came:
    """One run at the node. run_id: in the order in which the router saw the requests come; written: its number among all, as
    they were written."""

    key: int
    run_id: str
    written: int


class Holder:
    """The node: takes runs, and answers none until `release` is set."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.order: list[Came] = []
        """Each run, as it came."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of the router."""
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                if head.startswith("GET /node/v1/events"):
                    await self._tell(writer)
                elif head.startswith("GET"):
                    writer.write(_whole(self._status().model_dump_json().encode()))
                else:
                    await self._run(head, reader, writer)
        writer.close()

    async def _run(self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
        asked = json.loads(await reader.readexactly(int(headers["content-length"])))
        run_id = headers[RUN_ID_HEADER]
        self.order.append(Came(int(asked["prompt"]), run_id, int(headers[REQUEST_ID_HEADER])))
        await self.release.wait()
        more = f"{RUN_ID_HEADER}: {run_id}\r\n".encode()
        writer.write(_whole(b'{"created":1,"data":[{"b64_json":"AAAA"}]}', more))

    async def _tell(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n")
        line = line_of(None, self._status())
        while not writer.is_closing():
            writer.write(b"%x\r\n%b\r\n" % (len(line), line))
            await asyncio.sleep(SAID_EVERY_S)
            line = b"{}\n"

    @staticmethod
    def _status() -> Any:
        return FakeNode("holder", None, None, [MODEL], concurrency=AT_ONCE).status()  # type: ignore[arg-type]


def _whole(body: bytes, more: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n" % (more, len(body)) + body


class Client:
    """One on a connection of its own, which the router has accepted."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connected(cls, port: int, connecting: asyncio.Semaphore) -> Self:
        """Once it has had an answer."""
        async with connecting:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(head.partition(b"content-length:")[2].split()[0]))
        return cls(reader, writer)

    def ask(self, secret: str, key: int, number: int) -> None:
        """Write a request: to the system, at once."""
        body = json.dumps({"prompt": str(key), "model": MODEL, "size": "64x64", "num_inference_steps": 4}).encode()
        head = f"POST /v1/images/generations HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {secret}\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self._writer.write(f"{head}{REQUEST_ID_HEADER}: {number}\r\n\r\n".encode() + body)

    async def status(self) -> int:
        """Of the answer; 0 where there is none."""
        try:
            return int((await self._reader.readline()).split()[1])
        except (OSError, IndexError):
            return 0
        finally:
            self._writer.close()


def watch_health(port: int) -> None:
    """Ask again and again, until the input ends; then print every latency in milliseconds, as JSON."""
    os.set_blocking(0, False)
    took: list[float] = []
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    while os.read(0, 1) if _readable() else True:
        began_s = time.perf_counter()
        connection.request("GET", "/health")
        connection.getresponse().read()
        took.append(1000 * (time.perf_counter() - began_s))
        if len(took) == 1:
            print("begun", flush=True)
        time.sleep(LOOK_EVERY_S)
    print(json.dumps(took))


def _readable() -> bool:
    import select

    return bool(select.select([0], [], [], 0)[0])


@asynccontextmanager
async def _health(port: int, into: list[float]) -> Any:
    watcher = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.waiting", "--watch", str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert watcher.stdout is not None
    await asyncio.to_thread(watcher.stdout.readline)
    try:
        yield
    finally:
        told, _ = await asyncio.to_thread(watcher.communicate)
        into += json.loads(told)


def _started(machine: Machine, count: int) -> Any:
    limits = {
        "AQUATINT__ROUTER__MAX_QUEUED": str(count),
        "AQUATINT__ROUTER__RUN_TIMEOUT_S": "3600",
        "AQUATINT__LOG_LEVEL": "warning",
    }
    return machine.router(**limits)


async def measure(count: int, held_s: float = HELD_S) -> dict[str, Any]:
    """See the module."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    holder, took = Holder(), list[float]()
    node = await asyncio.start_server(holder.serve, "127.0.0.1", 0)
    with tempfile.TemporaryDirectory(prefix="aquatint-waiting-") as folder:
        url = sqlite_url(Path(folder) / "catalog.db")
        await migrate(url)
        machines = new_machine(Path(folder), {})
        router = await asyncio.to_thread(_started, next(machines), count)
        # After the router is started: what it can open is its own to raise.
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        catalog = await Catalog.open(url)
        secrets = [(await catalog.keys.create(name=f"key {key}", scopes=["user"]))[1] for key in range(KEYS)]
        async with httpx.AsyncClient(base_url=router.url, headers=HEADERS, timeout=60) as client:
            node_url = f"http://127.0.0.1:{node.sockets[0].getsockname()[1]}"
            (await client.post("/admin/nodes", json={"name": "holder", "url": node_url})).raise_for_status()
        port, connecting = int(router.url.rpartition(":")[2]), asyncio.Semaphore(CONNECTING)
        before = memory_bytes(router.pid)
        clients = await asyncio.gather(*(Client.connected(port, connecting) for _ in range(count)))
        async with _health(port, took):
            began_s = time.monotonic()
            answers = await _asked(clients, secrets, router.url)
            filled_s = time.monotonic() - began_s
            await asyncio.sleep(held_s)
            held = memory_bytes(router.pid)
            holder.release.set()
            statuses = await asyncio.gather(*answers)
            drained_s = time.monotonic() - began_s - filled_s - held_s
        peak = memory_bytes(router.pid, peak=True)
        await catalog.close()
        await asyncio.to_thread(lambda: next(machines, None))
        node.close()
    took.sort()
    return {
        "waiting": count,
        "answered 200": statuses.count(200),
        "filled s": round(filled_s, 1),
        "drained s": round(drained_s, 1),
        "router before MB": round(before / 1e6),
        "router holding MB": round(held / 1e6),
        "router peak MB": round(peak / 1e6),
        "health p50 ms": round(took[len(took) // 2], 1),
        "health p99 ms": round(took[int(len(took) * 0.99)], 1),
        "health max ms": round(took[-1], 1),
        "furthest out of order": max(_displaced([c.run_id for c in holder.order if c.key == key]) for key in range(KEYS)),
        "as they were written": max(_displaced([c.written for c in holder.order if c.key == key]) for key in range(KEYS)),
    }


async def _asked(clients: Sequence[Client], secrets: Sequence[str], url: str) -> list[asyncio.Task[int]]:
    """Have all of them ask, one after another. Returns: their answers to come, once all wait."""
    answers = list[asyncio.Task[int]]()
    async with httpx.AsyncClient(base_url=url, headers=HEADERS, timeout=60) as looking:

        async def all_wait() -> bool:
            return (await looking.get("/ready")).json()["queued"] >= len(answers) - 2 * AT_ONCE

        for begin in range(0, len(clients), WRITTEN_AHEAD):
            for number, client in enumerate(clients[begin : begin + WRITTEN_AHEAD], begin):
                client.ask(secrets[number % KEYS], number % KEYS, number)
                answers.append(asyncio.create_task(client.status()))
            await until(all_wait, what="all to wait", within_s=600)
    return answers


def _displaced(came: Sequence[Any]) -> int:
    """How many places any run is away from where it belongs."""
    places = sorted(range(len(came)), key=lambda index: came[index])
    return max((abs(place - index) for place, index in enumerate(places)), default=0)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.waiting")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--watch", type=int, help=argparse.SUPPRESS)
    wanted = parser.parse_args()
    if wanted.watch is not None:
        watch_health(wanted.watch)
        return
    for name, value in asyncio.run(measure(wanted.count)).items():
        print(f"{name:22} {value}")


if __name__ == "__main__":
    main()
