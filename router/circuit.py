"""Whether a node is given runs on a model: a circuit breaker for each pair. Pure; the caller tells the time.

    closed      runs go there; `FAILURES` in a row that are the node's fault open it
    open        none go there for a while, which doubles each time until it is as long as it may be
    half open   one run goes there, on trial: its success closes, its failure opens again

What was sent before it opened says nothing any more: the state changes once a hold at most. A pair that has worked for
as long as it was last held off begins anew with the shortest.
"""

from dataclasses import dataclass
from enum import StrEnum

FAILURES = 3
SHORTEST_S = 5.0
LONGEST_S = 60.0
"""As long as clients heed a Retry-After."""


class State(StrEnum):
    """See the module."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(slots=True)
class Circuit:
    """One model on one node."""

    failures: int = 0
    """In a row."""
    hold_s: float = 0.0
    """How long it was held off last; 0: never."""
    until_s: float | None = None
    """When the hold ends; None: closed."""
    closed_at_s: float = 0.0
    trial: str | None = None
    """The run on trial."""

    def state(self, now_s: float) -> State:
        """At this moment."""
        if self.until_s is None:
            return State.CLOSED
        return State.OPEN if now_s < self.until_s else State.HALF_OPEN

    def refuses(self, now_s: float) -> str | None:
        """Why no run may go there now; None when one may."""
        state = self.state(now_s)
        if state is State.CLOSED or (state is State.HALF_OPEN and self.trial is None):
            return None
        return f"failed {self.failures} times in a row" + (", on trial again" if state is State.HALF_OPEN else "")

    def sent(self, run_id: str, now_s: float) -> None:
        """A run is on its way there."""
        if self.state(now_s) is State.HALF_OPEN and self.trial is None:
            self.trial = run_id

    def ended(self, run_id: str) -> None:
        """A run has left, whatever came of it: one that said nothing of the node leaves the trial to another."""
        if self.trial == run_id:
            self.trial = None

    def failed(self, run_id: str, now_s: float) -> bool:
        """A run failed by the node's fault. True: it is held off from now on."""
        if self.until_s is not None and self.trial != run_id:
            return False
        self.failures += 1
        if self.until_s is None and self.failures < FAILURES:
            return False
        begins_anew = self.until_s is None and now_s - self.closed_at_s >= self.hold_s
        self.hold_s = SHORTEST_S if begins_anew else min(LONGEST_S, 2 * self.hold_s)
        self.until_s, self.trial = now_s + self.hold_s, None
        return True

    def worked(self, run_id: str, now_s: float) -> None:
        """A run succeeded."""
        if self.until_s is None:
            self.failures = 0
        elif self.trial == run_id:
            self.failures, self.until_s, self.trial, self.closed_at_s = 0, None, None, now_s
