"""Idempotency-Key, by Stripe's rules: the first answer again, and nothing made twice.

What an answer is remembered for: pictures, and errors that another try would repeat (`x-should-retry: false`, 5xx).
Not: what was refused before anything ran (4xx, a full queue, no node, a deadline that cannot be met), runs their client
left, and failures that may pass. After those the same key starts anew.
"""

import asyncio

from common.catalog import Catalog, Claim, KeyRecord
from common.errors import (
    AquatintError,
    CatalogUnavailable,
    DeadlineTooSoon,
    InvalidRequest,
    NoCapacity,
    WaitedTooLong,
)
from common.images_api import ImageRequest
from common.images_api.request import FOR_THE_ROUTER
from common.logs import get_logger
from common.web.headers import Headers
from router.body import Body
from router.digest import digest_of
from router.relay import Accepted

log = get_logger(__name__)

HEADER = "idempotency-key"
_HEADER = HEADER.encode()
REPLAYED_HEADER = "idempotent-replayed"
MAX_CHARACTERS = 255
NOTHING_RAN = (NoCapacity, DeadlineTooSoon, WaitedTooLong)


async def claim_of(headers: Headers, key: KeyRecord, asked: ImageRequest, *, is_async: bool) -> Claim | None:
    """The idempotency key of a request; None without one. Raises: InvalidRequest: it is none that can be kept."""
    given = headers.get(_HEADER)
    if given is None:
        return None
    name = given.decode("latin-1")
    if not 0 < len(name) <= MAX_CHARACTERS or not (name.isascii() and name.isprintable()):
        raise InvalidRequest(
            f"Invalid 'Idempotency-Key': expected 1 to {MAX_CHARACTERS} printable ASCII characters.",
            param="Idempotency-Key",
            code="invalid_idempotency_key",
        )
    return Claim(key_id=key.id, name=name, fingerprint=await fingerprint_of(asked, is_async=is_async))


async def fingerprint_of(asked: ImageRequest, *, is_async: bool) -> str:
    """The same for the same request, however it was written: order of fields, spaces and a form's boundary do not count.

    Taken before a seed is drawn and an alias resolved: both may differ from one time to the next.
    """
    for_router = {name: getattr(asked, name) for name in FOR_THE_ROUTER}
    return await digest_of([asked.task, is_async, for_router, asked.to_json()], asked.uploads)


async def remember(catalog: Catalog, accepted: Accepted, error: AquatintError) -> None:
    """Write an error down if it is one that the same request is answered with from now on."""
    if accepted.claim is None or error.status < 500 or error.retryable is not False or isinstance(error, NOTHING_RAN):
        return
    refusal = {"status": error.status, "headers": error.headers(), "body": error.envelope()}
    try:
        await catalog.idempotency.remember_refusal(accepted.claim, accepted.run_id, refusal)
    except CatalogUnavailable as unavailable:
        # The same key then starts anew, which is what a client expects of one that was never answered.
        log.warning("refusal_not_remembered", run_id=accepted.run_id, why=unavailable.message)


def closed_after(body: Body, catalog: Catalog, run_id: str) -> Body:
    """A streamed answer, with its run closed at the end if it has no pictures: the key must not wait for a sweep."""

    async def close(_: bool) -> None:
        try:
            message = "The stream ended without a picture."
            await asyncio.shield(catalog.runs.fail(run_id, code="stream_ended", message=message))
        except CatalogUnavailable as unavailable:
            log.warning("run_not_closed", run_id=run_id, why=unavailable.message)

    return Body(body, close)
