"""The chores of a node: begun, looked at, ended."""

import asyncio
import os
import sys
from contextlib import suppress
from dataclasses import dataclass

import orjson

from common.errors import NotFound, TooManyRequests
from common.lifeline import FD_VARIABLE
from common.logs import get_logger
from common.node_api import ChoreOrder, ChoreState, ChoreStatus
from common.web.background import ended

log = get_logger(__name__)

AT_ONCE = 2
KEPT = 100
"""Chores that have ended and are still told of."""
RETRY_S = 30


@dataclass(slots=True)
class _Chore:
    order: ChoreOrder
    status: ChoreStatus
    task: asyncio.Task[None] | None = None


class Chores:
    """One a node."""

    def __init__(self) -> None:
        self._chores: dict[str, _Chore] = {}

    def begin(self, order: ChoreOrder) -> ChoreStatus:
        """Begin with a chore, unless one of its name is known. Raises: TooManyRequests: as many run as may."""
        known = self._chores.get(order.name)
        if known is None:
            if sum(chore.status.state is ChoreState.RUNNING for chore in self._chores.values()) >= AT_ONCE:
                raise TooManyRequests(f"This node does {AT_ONCE} chores at once.", retry_after_s=RETRY_S)
            self._forget()
            known = _Chore(order, ChoreStatus(name=order.name, state=ChoreState.RUNNING))
            known.task = asyncio.create_task(self._do(known), name=f"chore {order.name}")
            self._chores[order.name] = known
        return known.status

    def status(self, name: str) -> ChoreStatus:
        """How far a chore is. Raises: NotFound."""
        if name not in self._chores:
            raise NotFound(f"There is no chore {name!r} here.", code="chore_not_found")
        return self._chores[name].status

    async def end(self, name: str) -> ChoreStatus:
        """Have a chore end, if it has not. Raises: NotFound."""
        self.status(name)
        chore = self._chores[name]
        if chore.task is not None:
            await ended(chore.task)
        return chore.status

    async def close(self) -> None:
        """End all."""
        for name in list(self._chores):
            await self.end(name)

    def _forget(self) -> None:
        done = [name for name, chore in self._chores.items() if chore.status.state is not ChoreState.RUNNING]
        for name in done[: max(0, len(done) - KEPT)]:
            del self._chores[name]

    async def _do(self, chore: _Chore) -> None:
        ours, theirs = os.pipe()
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "node.chores", chore.order.model_dump_json()),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                env=os.environ | {FD_VARIABLE: str(ours)},
                pass_fds=(ours,),
            )
        finally:
            os.close(ours)
        try:
            assert process.stdout is not None
            async for line in process.stdout:
                _now(chore, **orjson.loads(line))
            code = await process.wait()
            if chore.status.state is ChoreState.RUNNING:
                _now(chore, state=ChoreState.FAILED, error=f"Its process ended with code {code}; the node's log tells more.")
        except asyncio.CancelledError:
            _now(chore, state=ChoreState.CANCELLED)
            raise
        finally:
            # Also tells the child, if it lives: the lifeline is cut.
            os.close(theirs)
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            log.info("chore_ended", chore=chore.order.name, kind=chore.order.kind, state=chore.status.state)


def _now(chore: _Chore, **changed: object) -> None:
    chore.status = ChoreStatus.model_validate(chore.status.model_dump() | changed)
