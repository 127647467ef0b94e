"""From a request that was read to one that can be dispatched: the model behind its name, a seed, its work."""

from typing import NamedTuple

from common.catalog import Claim
from common.errors import UnsupportedTask
from common.images_api import ImageRequest, asked_for
from common.node_api import extras_of
from router.arrivals import Arrival
from router.model_names import ModelNames
from router.registry import Registry
from router.relay import Accepted
from router.result_cache import result_key_of
from router.wishes import AS_MOST, Wishes
from router.work import ask_of

NONE: frozenset[str] = frozenset()


class Sender(NamedTuple):
    """Who asks, and under which names."""

    run_id: str
    request_id: str
    requested_model: str | None
    key_id: str | None
    public_url: str
    arrived_s: float
    """When its request had come, on the monotonic clock."""
    claim: Claim | None = None
    wishes: Wishes = AS_MOST
    debug: bool = False
    """Whether it may be told, and wants to be, where its run is made and why."""
    arrival: Arrival | None = None
    """Its way to the line, where a client waits for it on a connection."""


class Acceptance:
    """The checks that need to know what the nodes have."""

    def __init__(self, names: ModelNames, registry: Registry, *, keep_results: bool) -> None:
        """keep_results: whether results can be found by those who ask for the same."""
        self._names = names
        self._keep_results = keep_results
        self._registry = registry

    async def accept(self, asked: ImageRequest, sender: Sender) -> Accepted:
        """What is dispatched. Raises: UnknownModel, UnsupportedTask, CatalogUnavailable."""
        model, status = await self._names.resolve(asked.model)
        can = self._registry.abilities(model)
        if can.tasks and asked.task not in can.tasks:
            raise UnsupportedTask(asked.model or model, asked.task, can.tasks)
        resolved = asked.settled(model)
        _, asks = asked_for(resolved.prompt, resolved.loras)
        # Python makes an empty set anew each time, of 200 bytes, and many requests wait with theirs.
        loras = (can.loras.intersection([each.name for each in asks]) or NONE) if asks else NONE
        extras = (can.extras & extras_of(resolved)) or NONE
        return Accepted(
            run_id=sender.run_id,
            request_id=sender.request_id,
            request=resolved,
            requested_model=sender.requested_model,
            ask=ask_of(resolved, model, status, loras=loras, extras=extras),
            key_id=sender.key_id,
            public_url=sender.public_url,
            label=model if status is not None else "other",
            claim=sender.claim,
            wishes=sender.wishes,
            debug=sender.debug,
            arrived_s=sender.arrived_s,
            arrival=sender.arrival,
            result_key=await result_key_of(asked, resolved, status, sender.key_id) if self._keep_results else None,
        )
