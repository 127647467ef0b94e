"""Nodes that lie: they answer something else, break off, are slow, refuse, finish and vanish, and tell lies of themselves.

Two of three nodes lie, the same lies in turn, each once; the third is true. A lie costs no client anything.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Iterator, Sequence

from tests.faults.campaign import Fault, Scene
from tests.faults.estate import ROUTERS, until
from tests.faults.proxy import Lie, Silence

LIARS = ("a", "b")
JSON = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
TOLD_WITHIN_S = 45.0
FLAPS = 8
SLOW_S = 0.2


def answer(body: bytes, kind: bytes = b"application/json", status: bytes = b"200 OK") -> bytes:
    """A whole answer."""
    return b"HTTP/1.1 %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n" % (status, kind, len(body)) + body


WRONG = (
    answer(b"<html>It works!</html>", b"text/html"),
    answer(b"\x00\x01garbage\xff"),
    answer(b'{"data": [{"b64_json":'),
    answer(b"[" * 10_000 + b"]" * 10_000),
    answer(b'{"created": NaN, "data": []}'),
    answer(b'{"data":{"b64_json":1}}'),
    answer(b"{}"),
    answer(b'{"created":1,"data":[{"b64_json":"AAAA"}]}', b"application/json\r\nx-run-id: run_of_another"),
    answer(b'<svg xmlns="http://www.w3.org/2000/svg"/>', b"image/svg+xml"),
    answer(b"\x89PNG\r\n\x1a\n", b"image/png"),
)
BROKEN = (
    b"",
    b"HTTP/1.1 200 OK\r\ncontent-le",
    b"SSH-2.0-OpenSSH_9.6\r\n",
    JSON + b"content-length: -1\r\n\r\n{}",
    JSON + b"content-length: 3\r\ncontent-length: 4\r\n\r\n{}",
    JSON + b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    JSON + b"\r\n{}",
    JSON + b"transfer-encoding: chunked\r\n\r\nzz\r\n",
    answer(b"{}") + answer(b'{"data":[{"b64_json":"EVIL"}]}'),
)
SLOW = (
    JSON + b"x-filler: " + b"1" * 100_000 + b"\r\n\r\n",
    JSON + b"".join(b"x-%d: 1\r\n" % number for number in range(1000)) + b"\r\n",
    JSON + b"content-encoding: gzip\r\ncontent-length: 2\r\n\r\n{}",
)
REFUSING = (
    answer(b'{"error":{"message":"no","code":"rate_limit_exceeded"}}', status=b"429 Too Many Requests"),
    answer(b'{"error":{"message":"no","code":"rate_limit_exceeded"}}', status=b"429 No\r\nretry-after: 99999"),
    answer(b"sorry", b"text/plain", b"503 Service Unavailable"),
    answer(b"not found", b"text/plain", b"404 Not Found"),
    answer(b"", b"text/plain", b"401 Unauthorized"),
    answer(b"", b"text/plain", b"302 Found\r\nlocation: http://127.0.0.1:9/"),
)


async def _lied(scene: Scene, lies: Sequence[Lie]) -> None:
    """Have the liars tell each lie once."""
    left = deque(lies)
    for name in LIARS:
        scene.estate.proxies[name].lies = left
    await until(lambda: not left, what="every lie to be told", within_s=TOLD_WITHIN_S)
    for name in LIARS:
        scene.estate.proxies[name].heal()
    scene.over()


async def wrong(scene: Scene) -> None:
    """F3: 200, and no answer to the run."""
    await _lied(scene, [Lie(each) for each in WRONG])


async def broken(scene: Scene) -> None:
    """F4: no HTTP, or not to its end. Nothing was begun."""
    await _lied(scene, [Lie(each) for each in BROKEN])


async def slow(scene: Scene) -> None:
    """F5: heads without an end, codings nobody asked for, and an answer that comes byte by byte."""
    drip = Lie(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n", pace_s=SLOW_S / 10)
    await _lied(scene, [*(Lie(each) for each in SLOW), drip])


async def refusing(scene: Scene) -> None:
    """F6: no place, not now, not here, not you, elsewhere."""
    await _lied(scene, [Lie(each) for each in REFUSING])


async def finished(scene: Scene) -> None:
    """F7: the work is done and stored, and then the connection is reset."""
    for turn in range(round(scene.longer)):
        if turn:
            # More of them in a row, and routers would hold the liars off for minutes.
            await scene.load.pause()
            await scene.estate.forgive()
            scene.load.resume()
        await _lied(scene, [Lie(b"", passes_on=True) for _ in range(6)])


async def untrue(scene: Scene) -> None:
    """F8: what a node says of itself is garbage, an error, silence, and comes and goes; its runs may be well."""
    proxy = scene.estate.proxies["a"]
    for told in (answer(b"garbage"), answer(b"{}", status=b"500 Internal Server Error"), None):
        looked = asyncio.Event()

        def look(told: bytes | None = told, looked: asyncio.Event = looked) -> bytes | None:
            looked.set()
            if told is None:
                raise Silence
            return told

        proxy.looks = look
        proxy.cut()
        await asyncio.wait_for(looked.wait(), TOLD_WITHIN_S)
    flaps = _flapping()
    proxy.looks = lambda: next(flaps)
    for _ in range(FLAPS):
        proxy.cut()
        await asyncio.sleep(SLOW_S)
    proxy.heal()
    proxy.cut()
    scene.over()
    for router in range(ROUTERS):
        await until(lambda router=router: scene.estate.sees_all(router), what="the node to be taken back")


def _flapping() -> Iterator[bytes | None]:
    """True one time, untrue the other."""
    return itertools.cycle((None, answer(b"no", status=b"500 Internal Server Error")))


FAULTS = [
    Fault(code="F3", title="node answers wrong", strike=wrong, kinds=("sqlite",)),
    Fault(code="F4", title="broken transport", strike=broken, kinds=("sqlite",)),
    Fault(code="F5", title="slow node", strike=slow, kinds=("sqlite",)),
    Fault(code="F6", title="node refuses", strike=refusing, kinds=("postgres",)),
    Fault(code="F7", title="finished, then reset", strike=finished, kinds=("sqlite",)),
    Fault(code="F8", title="health lies and flaps", strike=untrue, kinds=("postgres",)),
]
