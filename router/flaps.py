"""How long a node that comes and goes is held off once it is back: longer each time, up to a bound. Pure.

As routers damp routes that flap (RFC 2439), but counted in losses: each is remembered for `REMEMBERED_S`. The first ones
are free, as a node that was restarted must be of use at once.
"""

from collections import deque
from dataclasses import dataclass, field

FREE = 2
REMEMBERED_S = 300.0
SHORTEST_S = 5.0
LONGEST_S = 60.0


@dataclass(slots=True)
class Flaps:
    """One node's."""

    lost_at_s: deque[float] = field(default_factory=deque)
    held_until_s: float = 0.0

    def lost(self, now_s: float) -> None:
        """The node is gone."""
        self.lost_at_s.append(now_s)
        self._forget(now_s)

    def back(self, now_s: float) -> float:
        """The node is there again. Returns: seconds for which it is held off."""
        self._forget(now_s)
        more = len(self.lost_at_s) - FREE
        hold_s = min(LONGEST_S, SHORTEST_S * 2 ** (more - 1)) if more > 0 else 0.0
        self.held_until_s = now_s + hold_s
        return hold_s

    def free(self) -> None:
        """It is needed: nothing better is there."""
        self.held_until_s = 0.0

    def refuses(self, now_s: float) -> str | None:
        """Why it is given no runs; None when it is."""
        return f"comes and goes: lost {len(self.lost_at_s)} times of late" if now_s < self.held_until_s else None

    def _forget(self, now_s: float) -> None:
        while self.lost_at_s and now_s - self.lost_at_s[0] > REMEMBERED_S:
            self.lost_at_s.popleft()
