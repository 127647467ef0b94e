"""What a router does when things go wrong: each trial tells one figure, or None where the target has no such thing."""

import asyncio
import re
import socket
import statistics
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import httpx

from router.bench.load import request
from router.bench.processes import forget_peak, memory_bytes
from router.bench.stub_node import EVENTS, SLOW_S, model
from router.bench.targets import KEY, Target

ANSWER_WITHIN_S = 40.0
STALLED_READERS = 64
STALLED_S = 3.0
_SENT = re.compile(rb'"sent_ns":(\d+)')


class _Nodes:
    """What has happened at all nodes together. One client for all questions: the making of one takes longer than what is
    measured."""

    def __init__(self, ports: Sequence[int], client: httpx.AsyncClient) -> None:
        self._urls = [f"http://127.0.0.1:{port}" for port in ports]
        self._client = client

    async def told(self) -> dict[str, Any]:
        """Since they last forgot."""
        each = [(await self._client.get(f"{url}/stats")).json() for url in self._urls]
        return {name: sum((told[name] for told in each[1:]), each[0][name]) for name in each[0]}

    async def forget(self) -> None:
        """Begin to count anew."""
        for url in self._urls:
            await self._client.post(f"{url}/reset")


async def behave(target: Target, ports: Sequence[int], *, trials: int) -> dict[str, Any]:
    """All of it. ports: of the nodes."""
    async with httpx.AsyncClient(trust_env=False) as client:
        return await _behave(target, _Nodes(ports, client), trials)


async def _behave(target: Target, nodes: _Nodes, trials: int) -> dict[str, Any]:
    delays = [delay for _ in range(trials) if (delay := await _event_delay_ms(target.port)) is not None]
    told = [await _told_after_ms(target.port, nodes) for _ in range(trials)]
    return {
        "target": target.name,
        "event_delay_ms": round(max(delays), 1) if delays else None,
        "event_delay_median_ms": round(statistics.median(delays), 1) if delays else None,
        "told_after_ms": None if None in told else round(max(each for each in told if each is not None), 1),
        "starts_on_reset": (await _counted(target.port, nodes, "-reset"))["started"],
        "asks_on_reset": (await _counted(target.port, nodes, "-reset"))["asked"],
        "starts_on_503": (await _counted(target.port, nodes, "-503"))["started"],
        "asks_on_503": (await _counted(target.port, nodes, "-503"))["asked"],
        "stalled_readers_mb": None if target.pid is None else await _stalled_mb(target.port, target.pid),
    }


async def _event_delay_ms(port: int) -> float | None:
    """The largest delay between a node's writing of an event and its end's arrival; None without the events."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    writer.write(request(model(400, "-events"), KEY, stream=True))
    seen, begin = b"", 0
    delays: list[float] = []
    try:
        async with asyncio.timeout(ANSWER_WITHIN_S):
            while len(delays) < EVENTS and (data := await reader.read(1 << 20)):
                now_ns, seen = time.monotonic_ns(), seen + data
                while (end := seen.find(b'"}\n\n', begin)) >= 0:
                    sent = _SENT.search(seen, begin, end)
                    if sent is None:
                        break
                    delays.append((now_ns - int(sent[1])) / 1e6)
                    begin = end + 4
    except TimeoutError:
        return None
    finally:
        writer.transport.abort()
    return max(delays) if len(delays) == EVENTS else None


async def _told_after_ms(port: int, nodes: _Nodes) -> float | None:
    """How long after a client left in the middle of a run its node knew; None: the run went to its end."""
    await nodes.forget()
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(model(20, "-slow"), KEY))
    while not (await nodes.told())["started"]:
        pass
    left_ns = time.monotonic_ns()
    writer.transport.abort()
    await writer.wait_closed()
    end_s = time.monotonic() + SLOW_S + 0.5
    while time.monotonic() < end_s:
        if times := (await nodes.told())["left_at_ns"]:
            return float(max(times) - left_ns) / 1e6
        await asyncio.sleep(0.05)
    return None


async def _counted(port: int, nodes: _Nodes, kind: str) -> dict[str, Any]:
    """How often nodes were asked, and began, for one request that each of them fails."""
    await nodes.forget()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request(model(20, kind), KEY))
    with suppress(TimeoutError, OSError):
        async with asyncio.timeout(ANSWER_WITHIN_S):
            await reader.readline()
    writer.transport.abort()
    return await nodes.told()


async def _stalled_mb(port: int, pid: int) -> float:
    """How much memory clients cost that ask for 6 MB each and read nothing."""
    forget_peak(pid)
    before, whole = memory_bytes(pid), request(model(6000), KEY)
    clients = []
    try:
        for _ in range(STALLED_READERS):
            client = socket.socket()
            clients.append(client)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            client.connect(("127.0.0.1", port))
            client.sendall(whole)
        await asyncio.sleep(STALLED_S)
        return round((memory_bytes(pid, peak=True) - before) / 1e6, 1)
    finally:
        for client in clients:
            client.close()
