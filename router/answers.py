"""Answers out of the catalog: a finished run's body again, byte for byte, although its node is gone."""

import time

from common.catalog import AssetStore, Catalog, RunRecord, RunStatus
from common.errors import AquatintError
from common.images_api import AssetLinks, OutputFormat, Picture, ResponseFormat, Task, answer_bytes, events
from common.logs import get_logger

log = get_logger(__name__)


class Answers:
    """Rebuilds answers from what a node stored before it answered."""

    def __init__(self, catalog: Catalog, assets: AssetStore, links: AssetLinks) -> None:
        self._catalog = catalog
        self._assets = assets
        self._links = links

    async def rebuild(self, run_id: str, *, public_url: str = "") -> bytes | None:
        """The body of the answer to a run that succeeded; None if it did not, or if its pictures cannot be read."""
        try:
            run = await self._catalog.runs.get(run_id)
            if run.status is not RunStatus.SUCCEEDED:
                return None
            return answer_bytes(run.answer or {}, [await self._picture(run, index, public_url) for index in range(run.n)])
        except AquatintError as error:
            log.warning("answer_not_rebuilt", run_id=run_id, why=error.message)
            return None

    async def completed_event(self, run_id: str) -> bytes | None:
        """The last event of a streamed answer to a run that succeeded; None as for `rebuild`."""
        try:
            run = await self._catalog.runs.get(run_id)
            if run.status is not RunStatus.SUCCEEDED:
                return None
            image = run.images[0]
            return events.completed(
                Task(run.task),
                await self._assets.get(image.sha256),
                events.completed_head(run.answer or {}, image.seed, image.id),
            )
        except AquatintError as error:
            log.warning("answer_not_rebuilt", run_id=run_id, why=error.message)
            return None

    async def _picture(self, run: RunRecord, index: int, public_url: str) -> Picture:
        image = run.images[index]
        if run.request.get("response_format") == ResponseFormat.URL:
            url = self._links.sign(public_url, image.id, OutputFormat(image.format), now_s=time.time())
            return Picture(image.seed, image.id, url=url)
        return Picture(image.seed, image.id, content=await self._assets.get(image.sha256))
