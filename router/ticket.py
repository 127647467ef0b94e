"""One run that waits in this router, and what is known of it."""

import asyncio
from dataclasses import dataclass

from router.decisions import Pick
from router.forecast import Foreseen
from router.line import Waiting
from router.registry import Node


@dataclass(slots=True, eq=False, kw_only=True)
class Ticket(Waiting):
    """Times are on the monotonic clock."""

    run_id: str
    deadline_s: float
    """When its wait ends at the latest."""
    since_s: float
    """Since when it waits. It arrived earlier: where it was tried before, or where much had to be done first."""
    entered_s: float = 0.0
    """When it came into line last."""
    own_deadline: bool = False
    """Whether the deadline is its client's."""
    node: Node | None = None
    """Where it has a place."""
    pick: Pick | None = None
    """Why it was given that."""
    granted: asyncio.Future[None] | None = None
    """Ends when it has a place, or fails with why it has none; None before anybody waits for that."""
    foreseen: Foreseen | None = None
    """What was predicted of it last; counts from `foreseen_at_s`."""
    foreseen_at_s: float = 0.0
