"""A run's way into the catalog, in the order that loses nothing.

(1) the attempt is marked running when its turn comes, and recorded with its run where its router has not come to that or keeps
another catalog; (2) each picture's bytes are durable in the asset store;
(3) one transaction writes images and closes the run; (4) only then is the answer sent. A crash between any two leaves
something a sweeper can finish or close.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from common.catalog import AssetStore, AttemptFenced, Catalog, NewImage, NewRun
from common.errors import AquatintError, CatalogUnavailable, NotFound
from common.images_api import ImageRequest
from common.logs import get_logger
from node.engines.base import RunSpec

log = get_logger(__name__)

HEARTBEAT_EVERY_S = 10.0
"""A sweeper takes a run without a heartbeat for lost only after several times this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """Who sent a request, and what came with it."""

    request_id: str
    base_url: str
    """Where links to pictures start."""
    run_id: str | None = None
    """The run of a router; None when this node is to open its own."""
    attempt: int | None = None
    """The router's number of this try; None when this node is to begin one."""
    key_id: str | None = None
    requested_model: str | None = None


@dataclass(slots=True)
class Ticket:
    """One attempt at one run."""

    run: NewRun
    attempt: int
    own: bool
    """Whether this node opened the run, and so decides how it ends. A router may try another node instead."""

    @property
    def run_id(self) -> str:
        """The run."""
        return self.run.id


class Recorder:
    """The only part of the node that writes runs."""

    def __init__(self, catalog: Catalog, assets: AssetStore, *, node: str) -> None:
        self._catalog = catalog
        self._assets = assets
        self._node = node
        self._held: set[str] = set()

    async def begin(self, request: ImageRequest, spec: RunSpec, sender: Sender, run_id: str) -> Ticket:
        """Open the run, or take on a router's. Raises: CatalogUnavailable: nothing was begun; AttemptFenced."""
        own = sender.run_id is None
        run = _new_run(request, spec, sender, run_id)
        if own:
            await self._catalog.runs.open(run)
        attempt = sender.attempt
        if attempt is None:
            attempt = await self._catalog.runs.begin_attempt(run_id, node=self._node)
        self._held.add(run_id)
        return Ticket(run, attempt, own)

    async def running(self, ticket: Ticket) -> None:
        """Its turn has come. Raises: AttemptFenced: it is not wanted any more."""
        await self._catalog.runs.take_on(ticket.run, ticket.attempt, node=self._node)

    async def succeeded(
        self,
        ticket: Ticket,
        spec: RunSpec,
        files: Sequence[bytes],
        *,
        effective: dict[str, Any],
        timings_s: dict[str, float],
        answer: dict[str, Any],
    ) -> list[str]:
        """Store the bytes, then the rows; gives the ids of the images in order.

        Raises: AttemptFenced: another attempt has the run, and this result is dropped; StorageFull; CatalogUnavailable.
        """
        images = [
            NewImage(
                index=index,
                sha256=await self._assets.put(content),
                size_bytes=len(content),
                format=spec.output_format.value,
                width_px=spec.final_size.width_px,
                height_px=spec.final_size.height_px,
                seed=seed,
            )
            for index, (content, seed) in enumerate(zip(files, spec.seeds, strict=True))
        ]
        ids = await self._catalog.runs.finish(
            ticket.run_id, ticket.attempt, images=images, effective=effective, timings=timings_s, answer=answer
        )
        return list(ids)

    async def failed(self, ticket: Ticket, error: AquatintError) -> None:
        """Close the attempt, and the run if it is ours. What cannot be written is left to the sweeper."""
        code = error.code or "internal_error"
        with _left_to_the_sweeper(ticket):
            if ticket.own:
                await self._catalog.runs.fail(ticket.run_id, code=code, message=error.message)
            else:
                await self._catalog.runs.attempt_failed(ticket.run_id, ticket.attempt, code=code, message=error.message)

    async def cancelled(self, ticket: Ticket, reason: str) -> None:
        """The client left, or an operator cancelled: our run is cancelled; of a router's only this attempt ends."""
        with _left_to_the_sweeper(ticket):
            if ticket.own:
                await self._catalog.runs.cancel(ticket.run_id, reason=reason)
            else:
                await self._catalog.runs.attempt_failed(ticket.run_id, ticket.attempt, code="cancelled", message=reason)

    def release(self, ticket: Ticket) -> None:
        """No more heartbeats for this run."""
        self._held.discard(ticket.run_id)

    async def beat(self) -> None:
        """Say of every run held that it is alive, for ever."""
        while True:
            await asyncio.sleep(HEARTBEAT_EVERY_S)
            if self._held:
                try:
                    await self._catalog.runs.heartbeat(sorted(self._held))
                except CatalogUnavailable:
                    log.warning("heartbeat_missed", runs=len(self._held))


@contextmanager
def _left_to_the_sweeper(ticket: Ticket) -> Iterator[None]:
    """A catalog that cannot be written to, or another attempt that owns the run, must not hide the first error."""
    try:
        yield
    except (AttemptFenced, NotFound):
        log.info("attempt_not_open", attempt=ticket.attempt)
    except CatalogUnavailable:
        log.warning("run_left_open", attempt=ticket.attempt)


def _new_run(request: ImageRequest, spec: RunSpec, sender: Sender, run_id: str) -> NewRun:
    own = sender.run_id is None
    # A router's run is recorded as the router would: as it was asked for, whoever of the two comes first.
    size = spec.final_size if own else request.size
    return NewRun(
        id=run_id,
        task=request.task.value,
        model=spec.model,
        requested_model=request.model if own else sender.requested_model,
        prompt=request.prompt,
        request=request.to_json() | {"seed": spec.seeds[0]},
        key_id=sender.key_id,
        request_id=sender.request_id,
        source="node" if own else "router",
        seed=spec.seeds[0],
        n=len(spec.seeds),
        width_px=size.width_px if size else None,
        height_px=size.height_px if size else None,
    )
