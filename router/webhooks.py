"""Webhooks: a signed POST when an async run has ended, in the form of Standard Webhooks (standardwebhooks.com).

    webhook-id          the same for every try at one event
    webhook-timestamp   unix seconds of this try
    webhook-signature   v1,BASE64(HMAC-SHA256(secret, "{id}.{timestamp}.{body}"))

The secret (`whsec_` and base64) is each API key's own, made from one secret of the installation, so it is the same on all
routers and stored nowhere. Only origins that an operator has listed are called.
"""

import asyncio
import base64
import hashlib
import hmac
import random

import httpx
import orjson

from common.catalog import Catalog, DueWebhook
from common.clock import clock, utc_now
from common.dialling import NotDialled, UnusableUrl, exchange, listed, parsed
from common.errors import CatalogUnavailable, InvalidRequest, NotFound
from common.image_origins import ImageOrigins
from common.images_api import AssetLinks
from common.logs import get_logger
from router.run_object import run_object

log = get_logger(__name__)

SECRET_NAME = "webhooks"
"""Name of the installation's secret in the catalog."""
AGAIN_AFTER_S = (5, 30, 120, 600, 3600, 6 * 3600, 12 * 3600)
"""Waits between tries, each up to a fifth shorter or longer; after the last there is no other."""
TIMEOUT_S = 15.0
LEASE_S = 60.0
AT_ONCE = 8
LOOK_EVERY_S = 1.0


class Webhooks:
    """Checks where webhooks may go, signs them and sends them."""

    def __init__(self, catalog: Catalog, links: AssetLinks, origins: ImageOrigins, secret: str) -> None:
        self._catalog = catalog
        self._links = links
        self._origins = origins
        self._secret = secret.encode()

    def checked(self, url: str, *, is_async: bool = True) -> str:
        """`url`, if webhooks may go there. is_async: whether its request is one. Raises: InvalidRequest."""
        if not is_async:
            raise _refused("it is for requests with the header 'Prefer: respond-async'")
        try:
            taken = listed(parsed(url), self._origins)
        except UnusableUrl as error:
            raise _refused(str(error)) from None
        if not taken:
            raise _refused("this server calls listed origins only, and this is none of them")
        return url

    def secret_of(self, key_id: str) -> str:
        """What the webhooks of an API key are signed with, as Standard Webhooks' libraries take it."""
        return "whsec_" + base64.b64encode(hmac.new(self._secret, key_id.encode(), hashlib.sha256).digest()).decode()

    async def run(self) -> None:
        """Send what is due, until cancelled."""
        while True:
            try:
                due = await self._catalog.async_runs.due_webhooks(limit=AT_ONCE, lease_s=LEASE_S)
                await asyncio.gather(*(self._deliver(each) for each in due))
            except CatalogUnavailable as error:
                log.warning("webhooks_not_sent", why=error.message)
                due = []
            if not due:
                await asyncio.sleep(LOOK_EVERY_S)

    async def _deliver(self, due: DueWebhook) -> None:
        error = await self._send(due)
        again_in_s = None
        if error is not None and due.tries <= len(AGAIN_AFTER_S) and error != _GONE:
            again_in_s = AGAIN_AFTER_S[due.tries - 1] * random.uniform(0.8, 1.2)
        log.info("webhook_sent", run_id=due.run_id, tries=due.tries, error=error)
        await self._catalog.async_runs.webhook_done(due.run_id, error=error, again_in_s=again_in_s)

    async def _send(self, due: DueWebhook) -> str | None:
        """One try. Returns: why it failed; None when it did not."""
        try:
            run = await self._catalog.runs.get(due.run_id)
        except NotFound:
            return _GONE
        shown = run_object(run, self._links, public_url=due.public_url, nodes=False)
        ended_at = (run.finished_at or utc_now()).isoformat().replace("+00:00", "Z")
        body = orjson.dumps({"type": f"run.{run.status}", "timestamp": ended_at, "data": shown})
        told = signed(f"msg_{run.id}", int(clock.now_s()), body, self.secret_of(run.key_id or ""))
        headers = {"content-type": "application/json", "user-agent": "Aquatint", **told}
        try:
            async with asyncio.timeout(TIMEOUT_S):
                parts = parsed(self.checked(due.url))
                async with exchange("POST", parts, self._origins, headers=headers, timeout_s=TIMEOUT_S, content=body) as answer:
                    status = answer.status_code
        except (TimeoutError, httpx.HTTPError, OSError, NotDialled, InvalidRequest) as error:
            log.info("webhook_not_delivered", run_id=run.id, reason=f"{type(error).__name__}: {error}"[:200])
            return "no connection"
        if 200 <= status < 300:
            return None
        return _GONE if status == 410 else f"answered {status}"


_GONE = "gone"
"""Standard Webhooks: who answers 410 wants no more."""


def signed(message_id: str, at_s: int, body: bytes, secret: str) -> dict[str, str]:
    """The three headers of one try."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.new(key, f"{message_id}.{at_s}.".encode() + body, hashlib.sha256).digest()
    signature = f"v1,{base64.b64encode(digest).decode()}"
    return {"webhook-id": message_id, "webhook-timestamp": str(at_s), "webhook-signature": signature}


def _refused(why: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid 'webhook_url': {why}.", param="webhook_url", code="invalid_webhook_url")
