"""What a run carries with it on its way through the dispatcher: what has happened to it, and the try that is under way."""

import time
from dataclasses import dataclass, field

from common.catalog import NewRun
from common.errors import AquatintError
from router.forecast import Foreseen
from router.placement import Ask
from router.registry import Node
from router.relay import Accepted
from router.ticket import Ticket


@dataclass(slots=True)
class Journey:
    """What has happened to one run so far."""

    accepted: Accepted
    row: NewRun
    """In the catalog; its `request` is what a node is sent, too."""
    deadline_s: float
    ask: Ask
    recorded: bool = False
    """Its row is committed, or will be before this process asks for it."""
    ticket: Ticket | None = None
    """Its place in line, where a node had none for it."""
    foreseen: Foreseen | None = None
    """What was predicted when it came."""
    began_s: float = field(default_factory=time.monotonic)
    attempts: int = 0
    last: AquatintError | None = None


@dataclass(slots=True)
class Try:
    """One attempt at one node, where it has a place and is written down."""

    node: Node
    no: int
    turned_away: bool = False
    """The node had no place after all, so there is none to give back."""
    streams: bool = False
    """Its answer has begun, with a preview, before it is made."""
    began_s: float = field(default_factory=time.monotonic)
