"""Answers out of the catalog: a finished run's body again, byte for byte, although its node is gone."""

import orjson

from common.catalog import AssetStore, Catalog, Earlier, RunRecord, RunStatus
from common.clock import clock
from common.errors import AquatintError, Gone, NotFound
from common.images_api import AssetLinks, OutputFormat, Picture, ResponseFormat, Task, answer_bytes, events
from common.images_api.links import LIFETIME_S
from common.logs import get_logger
from common.node_api import RUN_ID_HEADER
from router.body import Whole
from router.relay import Reply, rebuilt_headers

log = get_logger(__name__)

REPLAYED = {"idempotent-replayed": "true"}
LEAST_LIFETIME_S = 60.0
"""A link that was answered before is given again while it is good for so long; then one with a time of its own."""


class Answers:
    """Rebuilds answers from what a node stored before it answered."""

    def __init__(self, catalog: Catalog, assets: AssetStore, links: AssetLinks) -> None:
        self._catalog = catalog
        self._assets = assets
        self._links = links

    async def rebuild(self, run_id: str, *, stream: bool = False, public_url: str = "") -> bytes | None:
        """The body of the answer to a run that succeeded, the last event of a streamed one; None if it did not succeed, or if
        its pictures cannot be read."""
        try:
            run = await self._catalog.runs.get(run_id)
            return await self._content(run, public_url, stream=stream) if run.status is RunStatus.SUCCEEDED else None
        except AquatintError as error:
            log.warning("answer_not_rebuilt", run_id=run_id, why=error.message)
            return None

    async def replay(self, earlier: Earlier, *, stream: bool, public_url: str) -> Reply:
        """The answer of an earlier request with the same idempotency key.

        Raises: Gone: its pictures are not kept any more; CatalogUnavailable, Unavailable: they cannot be read now.
        """
        told = REPLAYED | {RUN_ID_HEADER: earlier.run_id}
        if earlier.refusal is not None:
            told |= {"content-type": "application/json", **earlier.refusal["headers"]}
            return Reply(earlier.refusal["status"], told, Whole(orjson.dumps(earlier.refusal["body"])))
        reply = await self.reply(earlier.run_id, stream=stream, public_url=public_url)
        return Reply(reply.status, {**told, **reply.headers}, reply.body)

    async def reply(self, run_id: str, *, stream: bool, public_url: str) -> Reply:
        """The answer to a run that succeeded. Raises: Gone, CatalogUnavailable, Unavailable, as `replay`."""
        run = await self._catalog.runs.get(run_id)
        try:
            body = await self._content(run, public_url, stream=stream)
        except NotFound:
            raise Gone("The pictures of the first answer are not kept any more.") from None
        seeds = (image.seed for image in run.images)
        return Reply(200, rebuilt_headers(run.id, seeds, stream=stream), Whole(body))

    async def body(self, run: RunRecord, public_url: str) -> bytes:
        """The body of the answer to a run that succeeded. Raises: NotFound, Unavailable: its pictures cannot be read."""
        return answer_bytes(run.answer or {}, [await self._picture(run, index, public_url) for index in range(run.n)])

    async def _content(self, run: RunRecord, public_url: str, *, stream: bool) -> bytes:
        return await (self._event(run) if stream else self.body(run, public_url))

    async def _event(self, run: RunRecord) -> bytes:
        image = run.images[0]
        head = events.completed_head(run.answer or {}, image.seed, image.id)
        return events.completed(Task(run.task), await self._assets.get(image.sha256), head)

    async def _picture(self, run: RunRecord, index: int, public_url: str) -> Picture:
        image = run.images[index]
        if run.request.get("response_format") == ResponseFormat.URL:
            now_s, made_s = clock.now_s(), float((run.answer or {}).get("created", 0))
            signed_s = made_s if made_s + LIFETIME_S - LEAST_LIFETIME_S > now_s else now_s
            url = self._links.sign(public_url, image.id, OutputFormat(image.format), now_s=signed_s)
            return Picture(image.seed, image.id, url=url)
        return Picture(image.seed, image.id, content=await self._assets.get(image.sha256))
