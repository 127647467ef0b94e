"""Limits of API keys as one router keeps them: by leases of what is left (`common/catalog/quotas.py`).

A request of a key without limits costs nothing here. One of a key with limits is admitted out of the router's lease; only
when that does not suffice is the catalog asked, for this request and a twentieth of the limit beyond.
"""

import asyncio
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from common.catalog import Amounts, Catalog, KeyRecord, Lease, Limits
from common.catalog.quotas import minute_of
from common.clock import utc_now
from common.errors import CatalogUnavailable, QuotaExceeded, RateLimited
from common.logs import get_logger

log = get_logger(__name__)

LEASE_S = 30.0
TEND_EVERY_S = 10.0
IDLE_AFTER_S = 10.0
AHEAD = 20
"""One in so many of a limit is taken ahead of its requests: nothing of small limits, so that routers can share those."""
IN_FLIGHT_RETRY_S = 2


@dataclass(slots=True)
class _Key:
    """One key with limits."""

    limits: Limits
    lease: Lease = field(default_factory=lambda: Lease(granted=Amounts(), room=Amounts()))
    until_s: float = 0.0
    minute: int = 0
    requests: int = 0
    """Admitted in this minute."""
    held: Amounts = field(default_factory=Amounts)
    """Of what is in flight."""
    spent: Amounts = field(default_factory=Amounts)
    """Of what has left since the last exchange: from then on it is the catalog's usage."""
    used_at_s: float = 0.0
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    def needs(self, more: Amounts, now: datetime) -> Amounts:
        """What the lease must hold for this router to admit `more`."""
        before = self.requests if self.minute == minute_of(now) else 0
        return Amounts(
            requests=before + more.requests,
            images=self.held.images + more.images,
            gpu_s=self.held.gpu_s + more.gpu_s,
            in_flight=self.held.in_flight + more.in_flight,
        )

    def lacks(self, more: Amounts, now: datetime) -> str | None:
        """Of what the lease has not enough to admit `more`; None when it has."""
        need, granted, limits = self.needs(more, now), self.lease.granted, self.limits
        requests = granted.requests if self.minute == minute_of(now) else 0
        if limits.requests_per_minute is not None and need.requests > requests:
            return "requests"
        if limits.max_in_flight is not None and need.in_flight > granted.in_flight:
            return "in_flight"
        if limits.images_per_day is not None and need.images + self.spent.images > granted.images:
            return "images"
        if limits.gpu_seconds_per_day is not None and need.gpu_s + self.spent.gpu_s > granted.gpu_s:
            return "gpu_s"
        return None

    def wants(self, more: Amounts, now: datetime) -> Amounts:
        """What to ask the catalog for. Of what has no limit, what is needed."""
        need, limits = self.needs(more, now), self.limits
        return Amounts(
            requests=need.requests + (limits.requests_per_minute or 0) // AHEAD,
            images=need.images + (limits.images_per_day or 0) // AHEAD,
            gpu_s=need.gpu_s + (limits.gpu_seconds_per_day or 0) / AHEAD,
            in_flight=need.in_flight + (limits.max_in_flight or 0) // AHEAD,
        )


class Hold:
    """What one admitted request holds of its key's limits. headers: what the client is told of them."""

    def __init__(self, key: _Key | None, amounts: Amounts, headers: Mapping[str, str]) -> None:
        self._key = key
        self._amounts = amounts
        self.headers = headers

    def release(self) -> None:
        """The request has been answered. Doing it again changes nothing."""
        key, self._key = self._key, None
        if key is not None:
            key.held = _plus(key.held, self._amounts, -1)
            key.spent = _plus(key.spent, self._amounts, 1)


NOTHING = Hold(None, Amounts(), {})
"""What a request of a key without limits holds."""


class Quotas:
    """Admits requests. One a router."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._holder = f"router_{secrets.token_hex(16)}"
        self._keys: dict[str, _Key] = {}

    async def admit(self, key: KeyRecord, *, images: int, gpu_s: float, is_async: bool = False) -> Hold:
        """Let a request in. is_async: what is open of those is counted by the catalog, so that is asked.

        Raises: RateLimited, QuotaExceeded: it is one too many; CatalogUnavailable.
        """
        if not key.limits.counted:
            return NOTHING
        ours = self._keys.setdefault(key.id, _Key(key.limits))
        ours.limits, ours.used_at_s = key.limits, time.monotonic()
        more = Amounts(requests=1, images=images, gpu_s=gpu_s, in_flight=1)
        async with ours.turn:
            now = utc_now()
            if is_async or time.monotonic() >= ours.until_s or ours.lacks(more, now) is not None:
                await self._exchange(key.id, ours, ours.wants(more, now), now)
            short = ours.lacks(more, now)
            if short is not None:
                raise _refusal(short, ours, more, now)
            ours.requests += 1
            ours.held = _plus(ours.held, more, 1)
        return Hold(ours, more, _headers(ours, now))

    async def run(self) -> None:
        """Prolong leases of what is in flight and give back what nobody needs, until cancelled."""
        while True:
            await asyncio.sleep(TEND_EVERY_S)
            try:
                await self._tend()
            except CatalogUnavailable as error:
                log.warning("quota_leases_not_tended", why=error.message)

    async def _tend(self) -> None:
        for key_id, ours in list(self._keys.items()):
            async with ours.turn:
                if time.monotonic() - ours.used_at_s < IDLE_AFTER_S:
                    continue
                now = utc_now()
                # Requests of this minute stay counted whether or not somebody is still here.
                await self._exchange(key_id, ours, ours.needs(Amounts(), now), now)
                if ours.held == Amounts() and ours.requests == 0:
                    del self._keys[key_id]

    async def _exchange(self, key_id: str, ours: _Key, want: Amounts, now: datetime) -> None:
        spent, held = ours.spent, ours.needs(Amounts(), now)
        ours.lease = await self._catalog.quotas.exchange(
            key_id, self._holder, ours.limits, want, held=held, lease_s=LEASE_S, now=now
        )
        ours.until_s = time.monotonic() + LEASE_S / 2
        # What left meanwhile was still part of what was asked for.
        ours.spent = _plus(ours.spent, spent, -1)
        if ours.minute != minute_of(now):
            ours.minute, ours.requests = minute_of(now), 0


def held(response: Response, hold: Hold) -> Response:
    """A response that gives a hold back when it has been sent, or its client has left."""
    return response if hold is NOTHING else _Held(response, hold)


class _Held(Response):
    def __init__(self, response: Response, hold: Hold) -> None:
        self._response = response
        self._hold = hold
        response.headers.update(hold.headers)
        self.status_code, self.raw_headers, self.background = response.status_code, response.raw_headers, None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._response(scope, receive, send)
        finally:
            self._hold.release()


def _plus(one: Amounts, other: Amounts, sign: int) -> Amounts:
    """Without `requests`, which are counted by the minute and never given back."""
    return Amounts(
        images=one.images + sign * other.images,
        # Not below zero by what floats lose.
        gpu_s=max(0.0, one.gpu_s + sign * other.gpu_s),
        in_flight=one.in_flight + sign * other.in_flight,
    )


def _refusal(short: str, ours: _Key, more: Amounts, now: datetime) -> RateLimited | QuotaExceeded:
    limits, headers, to_minute_s = ours.limits, _headers(ours, now), 60 - now.second
    if short == "requests":
        used = (limits.requests_per_minute or 0) - max(0, ours.lease.room.requests - ours.requests)
        told = f"Rate limit reached on requests per min (RPM): Limit {limits.requests_per_minute}, Used {used}, Requested 1."
        return RateLimited(f"{told} Please try again in {to_minute_s}s.", headers, retry_after_s=to_minute_s)
    if short == "in_flight":
        told = f"Rate limit reached on requests in flight: Limit {limits.max_in_flight}."
        return RateLimited(f"{told} Please try again in {IN_FLIGHT_RETRY_S}s.", headers, retry_after_s=IN_FLIGHT_RETRY_S)
    if short == "images":
        left = max(0, ours.lease.room.images - ours.held.images)
        what = f"images per day: Limit {limits.images_per_day}, Left {left}, Requested {more.images}"
    else:
        left_s = max(0.0, ours.lease.room.gpu_s - ours.held.gpu_s)
        what = f"GPU-seconds per day: Limit {limits.gpu_seconds_per_day:g}, Left {left_s:.1f}, Requested {more.gpu_s:.1f}"
    return QuotaExceeded(f"You exceeded your current quota, please check your plan: {what}.", headers)


def _headers(ours: _Key, now: datetime) -> dict[str, str]:
    """OpenAI's `x-ratelimit-*`, for each limit that the key has."""
    limits, room = ours.limits, ours.lease.room
    midnight = (now + timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    to_midnight = _duration(int((midnight - now).total_seconds()))
    left_gpu_s = room.gpu_s - ours.held.gpu_s - ours.spent.gpu_s
    told = {
        "requests": (limits.requests_per_minute, room.requests - ours.requests, _duration(60 - now.second)),
        "images": (limits.images_per_day, room.images - ours.held.images - ours.spent.images, to_midnight),
        "gpu-seconds": (limits.gpu_seconds_per_day, int(left_gpu_s), to_midnight),
        "in-flight": (limits.max_in_flight, room.in_flight - ours.held.in_flight, "0s"),
    }
    headers = {}
    for name, (limit, left, reset) in told.items():
        if limit is not None:
            headers[f"x-ratelimit-limit-{name}"] = f"{limit:g}"
            headers[f"x-ratelimit-remaining-{name}"] = str(max(0, left))
            headers[f"x-ratelimit-reset-{name}"] = reset
    return headers


def _duration(seconds: int) -> str:
    """As OpenAI writes them: 1s, 6m0s, 17h3m2s."""
    hours, rest = divmod(seconds, 3600)
    minutes, rest = divmod(rest, 60)
    shown = f"{rest}s"
    if hours or minutes:
        shown = f"{minutes}m{shown}"
    return f"{hours}h{shown}" if hours else shown
