"""Load as clients make it: an open loop on real sockets, every request unlike every other, so that any mix-up shows.

Requests come at random (Poisson) and wait for nobody. A third carry an idempotency key, a tenth of the clients leave before
their answer, some stream, some upload, some want links. Each is written down here, to be held against the catalog, the
nodes' journal and the store.
"""

import asyncio
import base64
import hashlib
import io
import time
from dataclasses import dataclass, field, replace
from random import Random
from statistics import median
from typing import Any

import httpx
import orjson
from PIL import Image

from common.node_api import RUN_ID_HEADER
from tests.faults.estate import HEADERS, ROUTERS, SIZE, Estate, until

RATE_PER_S = 12.0
MOST_OPEN = 24
"""Requests in flight at which the next one waits: a slow machine must not be what is tried."""
LEAST_OPEN = 4
"""On a machine that is slower than usual."""
ANSWER_WITHIN_S = 90.0
MAY_PASS = ("no_capacity", "catalog_unavailable", "storage_full", "interrupted", "unavailable", "node_failed")
"""Errors at the end of a stream that tell a client to come again."""
RESOLVED_WITHIN_S = 60.0
GOOD_WITHIN_S = 60.0
"""How long the next good answer may stay away."""


@dataclass(slots=True)
class Asked:
    """One request and what became of it. Times are on the monotonic clock, which all processes of a machine share."""

    prompt: str
    seed: int
    n: int
    router: int
    kind: str = "json"
    """json, url, stream or edit."""
    key: str | None = None
    """Its idempotency key."""
    leaves_after_s: float | None = None
    sent_s: float = 0.0
    ended_s: float | None = None
    status: int | None = None
    """None: the connection ended without an answer."""
    error: str = ""
    told: str = ""
    """The error in words."""
    retry_after_s: int | None = None
    run_id: str | None = None
    digests: list[str] = field(default_factory=list)
    """sha256 of each picture that came."""
    crossed: bool = False
    """Whether what came is not what it asked for."""
    left_s: float | None = None
    """When its client left."""
    tries: int = 0

    @property
    def outcome(self) -> str:
        """2xx, left, refused (told when to come again) or failed."""
        if self.left_s is not None:
            return "left"
        if self.status == 200:
            return "2xx"
        if self.status in (429, 502, 503) and self.retry_after_s is not None and 1 <= self.retry_after_s <= 120:
            return "refused"
        return "failed"


def upload() -> bytes:
    """A small picture, for edits."""
    out = io.BytesIO()
    Image.new("RGB", (SIZE.width_px, SIZE.height_px), (10, 20, 30)).save(out, "PNG")
    return out.getvalue()


class Load:
    """All requests of one fault. name: what their prompts begin with."""

    def __init__(self, estate: Estate, name: str, rng: Random, *, rate_per_s: float = RATE_PER_S) -> None:
        self._estate = estate
        self.name = name
        self._rng = rng
        self._rate_per_s = rate_per_s
        self.asked: list[Asked] = []
        self._most_open = MOST_OPEN
        self._open: set[asyncio.Task[None]] = set()
        self._loop: asyncio.Task[None] | None = None
        self._comes = asyncio.Event()
        self._comes.set()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
        self._client = httpx.AsyncClient(headers=HEADERS, timeout=ANSWER_WITHIN_S, limits=limits, trust_env=False)

    def begin(self) -> None:
        """Requests come from here on."""
        self._loop = asyncio.create_task(self._come())

    async def stop(self) -> None:
        """No more requests come; returns when all are ended."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        await asyncio.gather(*self._open)

    async def pause(self) -> None:
        """No more requests come until `resume`; returns when all are ended."""
        self._comes.clear()
        await until(lambda: not self._open, what="requests to end")

    def resume(self) -> None:
        """After `pause`."""
        self._comes.set()

    async def abandon(self) -> None:
        """Give up what is open still."""
        left = list(self._open) if self._loop is None else [self._loop, *self._open]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def aclose(self) -> None:
        """Close the clients' connections."""
        await self._client.aclose()

    async def once_more(self, asked: Asked, **changed: Any) -> Asked:
        """The same request again, or with something `changed`, at the other router; it is not counted."""
        again = Asked(asked.prompt, asked.seed, asked.n, (asked.router + 1) % ROUTERS, asked.kind, asked.key)
        again = replace(again, **changed)
        await self.ask(again, again.router)
        return again

    async def good(self, count: int) -> None:
        """Wait until `count` requests sent from now on are answered well."""
        since_s = time.monotonic()

        def good() -> int:
            return sum(each.outcome == "2xx" and each.sent_s >= since_s for each in self.asked)

        while (so_far := good()) < count:
            await until(lambda: good() > so_far, what=f"good answer {so_far + 1} of {count}", within_s=GOOD_WITHIN_S)

    def slowness(self) -> float:
        """How many times longer an answer takes than on a machine that has nothing else to do, at least 1; and from now on so
        much fewer requests are open at once."""
        took_s = median(each.ended_s - each.sent_s for each in self.asked if each.outcome == "2xx" and each.ended_s is not None)
        slow = max(1.0, took_s / self._estate.usual_s)
        self._most_open = max(LEAST_OPEN, round(MOST_OPEN / slow))
        return slow

    async def _come(self) -> None:
        while True:
            await self._comes.wait()
            if len(self._open) < self._most_open:
                self.send(self._new())
            await asyncio.sleep(self._rng.expovariate(self._rate_per_s))

    def _new(self) -> Asked:
        rng, number = self._rng, len(self.asked)
        asked = Asked(f"{self.name} {number}", rng.randrange(2**31), rng.choice((1, 1, 2)), number % ROUTERS)
        asked.kind = rng.choices(("json", "url", "stream", "edit"), (80, 10, 5, 5))[0]
        if asked.kind == "stream":
            asked.n = 1
        if rng.random() < 0.3:
            asked.key = f"{self.name}-{number}"
        elif rng.random() < 0.14:
            asked.leaves_after_s = rng.uniform(0.0, 0.15)
        return asked

    def send(self, asked: Asked) -> asyncio.Task[None]:
        """One request; its task ends with it."""
        self.asked.append(asked)
        task = asyncio.create_task(self._through(asked))
        self._open.add(task)
        task.add_done_callback(self._open.discard)
        return task

    async def _through(self, asked: Asked) -> None:
        asked.sent_s = time.monotonic()
        try:
            async with asyncio.timeout(asked.leaves_after_s):
                await self._asked(asked)
        except TimeoutError:
            if asked.status is None:
                asked.left_s = time.monotonic()
        asked.ended_s = time.monotonic()

    async def _asked(self, asked: Asked) -> None:
        """Ask; where the connection ended without an answer, again under the same key, as SDKs do; where none could be
        made, at the other router, as any balancer does."""
        router, end_s = asked.router, time.monotonic() + RESOLVED_WITHIN_S
        while True:
            asked.tries += 1
            asked.status, asked.retry_after_s, nobody_there = None, None, False
            try:
                await self.ask(asked, router)
            except (httpx.HTTPError, ValueError, LookupError) as error:
                asked.error, nobody_there = type(error).__name__, isinstance(error, httpx.ConnectError)
            unresolved = asked.status in (None, 409) or (asked.tries > 1 and asked.status in (502, 503))
            again = nobody_there or (asked.key is not None and unresolved)
            if not again or time.monotonic() > end_s:
                return
            router = (router + 1) % ROUTERS
            await asyncio.sleep(0.2)

    async def ask(self, asked: Asked, router: int) -> None:
        """Once, at one router. Raises: HTTPError; ValueError, LookupError: an answer that cannot be understood."""
        headers = {"idempotency-key": asked.key} if asked.key is not None else {}
        fields: dict[str, Any] = {
            "prompt": asked.prompt,
            "seed": asked.seed,
            "n": asked.n,
            "size": str(SIZE),
            **self._estate.asks,
        }
        url = f"{self._estate.router_url(router)}/v1/images/{'edits' if asked.kind == 'edit' else 'generations'}"
        if asked.kind == "edit":
            files = {"image": ("a.png", upload(), "image/png")}
            form = {name: str(value) for name, value in fields.items()}
            reply = await self._client.post(url, data=form, files=files, headers=headers)
        else:
            fields |= {"stream": True} if asked.kind == "stream" else {}
            fields |= {"response_format": "url"} if asked.kind == "url" else {}
            reply = await self._client.post(url, json=fields, headers=headers)
        await self._read(asked, reply)

    async def _read(self, asked: Asked, reply: httpx.Response) -> None:
        if reply.status_code != 200:
            error = reply.json()["error"]
            asked.error, asked.told = error["code"] or "", error["message"]
            asked.retry_after_s = int(reply.headers["retry-after"]) if "retry-after" in reply.headers else None
            asked.status = reply.status_code
            return
        asked.run_id = reply.headers[RUN_ID_HEADER]
        pictures = _last_event(asked, reply.text) if asked.kind == "stream" else reply.json()["data"]
        if pictures is None:
            # A stream has no headers left to say when to come again: its error says whether that makes sense.
            asked.status, asked.retry_after_s = 502, 1 if asked.error in MAY_PASS else None
            return
        digests, own = [], len(pictures) == asked.n
        for index, picture in enumerate(pictures):
            if "url" in picture:
                content = await self._fetched(picture["url"])
            else:
                content = base64.b64decode(picture["b64_json"])
            digests.append(hashlib.sha256(content).hexdigest())
            own = own and self._estate.is_own(asked.prompt, asked.seed + index, content)
        asked.digests, asked.crossed = digests, not own
        asked.status = 200

    async def _fetched(self, url: str) -> bytes:
        """A picture by its link, which any router answers."""
        path = url[url.index("/v1/") :]
        for router in range(ROUTERS):
            try:
                return (await self._client.get(self._estate.router_url(router) + path)).raise_for_status().content
            except httpx.ConnectError:
                continue
        raise ValueError("no router answers the link")


def _last_event(asked: Asked, text: str) -> list[dict[str, Any]] | None:
    """The picture that a stream ended with; None where it ended with an error."""
    last = [line for line in text.splitlines() if line.startswith("data:")][-1]
    event = orjson.loads(last.removeprefix("data:"))
    if "error" in event:
        asked.error, asked.told = str(event["error"]["code"]), event["error"]["message"]
        return None
    return [event]
