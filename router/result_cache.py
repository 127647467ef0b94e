"""The exact-result cache: a request that was answered before is answered with the same pictures, and no device works.

Off unless an operator wants it. "The same" is strict: the same resolved request with a seed of the client's own, of the
same API key, to the same files of the same model. Requests with LoRAs or ControlNets are made anew: of those this router
knows names only, and a file may be replaced under its name.
"""

from common.catalog import AssetStore, Catalog, RunRecord
from common.errors import NotFound
from common.images_api import ImageRequest, asked_for
from common.logs import get_logger
from common.node_api import ModelStatus
from router.answers import Answers
from router.digest import digest_of
from router.relay import Accepted, Reply, row_of

log = get_logger(__name__)

HEADER = "x-cache"
ABOUT_THE_ANSWER = ("response_format", "stream", "partial_images", "user", "safety_identifier")
"""Fields that change the answer and not the picture."""


class ResultCache:
    """Finds and uses again what was made before. One a router."""

    def __init__(self, catalog: Catalog, assets: AssetStore, answers: Answers) -> None:
        self._catalog = catalog
        self._assets = assets
        self._answers = answers

    async def reply(self, accepted: Accepted) -> Reply | None:
        """The answer to a request whose pictures are stored already, with a run of its own; None when they are not.

        Raises: KeyReused, KeyInFlight, CatalogUnavailable.
        """
        if accepted.result_key is None:
            return None
        source = await self._catalog.results.find(accepted.result_key)
        if source is None or not await self._is_whole(source):
            return None
        stream, public_url = accepted.request.stream, accepted.public_url
        earlier = await self._catalog.results.reuse(row_of(accepted), source, accepted.claim)
        if earlier is not None:
            return await self._answers.replay(earlier, stream=stream, public_url=public_url)
        log.info("result_used_again", run_id=accepted.run_id, source=source.id)
        reply = await self._answers.reply(accepted.run_id, stream=stream, public_url=public_url)
        return Reply(reply.status, {**reply.headers, HEADER: "hit"}, reply.body)

    async def _is_whole(self, run: RunRecord) -> bool:
        """Whether the bytes of all its pictures are still there."""
        try:
            for image in run.images:
                await self._assets.stat(image.sha256)
        except NotFound:
            return False
        return len(run.images) == run.n


async def result_key_of(
    asked: ImageRequest, resolved: ImageRequest, model: ModelStatus | None, key_id: str | None
) -> str | None:
    """What the result of a request can be found by; None where it cannot be the same twice, or nobody could tell.

    asked: as the client sent it; resolved: with its model and seed; model: what nodes say of that model.
    """
    _, loras = asked_for(resolved.prompt, resolved.loras)
    if asked.seed is None or not asked.cache or model is None or loras or resolved.control:
        return None
    fields = {name: value for name, value in resolved.to_json().items() if name not in ABOUT_THE_ANSWER}
    files = [model.id, model.family, model.profile, model.created, model.format, model.engine, model.capabilities]
    return await digest_of([key_id, resolved.task, fields, files], resolved.uploads)
