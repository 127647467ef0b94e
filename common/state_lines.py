"""A node's state as it changes: `GET /node/v1/events`, lines of JSON.

The first line is a whole `NodeStatus`; every later one has the fields that are not as they were, and `{}` is a sign of life.
What changes often, such as the step of a run, so costs a few bytes, however many models a node has.
"""

from typing import Any

import orjson

from common.node_api import NodeStatus

MEDIA_TYPE = "application/x-ndjson"
SAID_EVERY_S = 0.5
"""A node says something at least this often."""


def line_of(before: NodeStatus | None, now: NodeStatus) -> bytes:
    """The line that makes `now` of `before`; the first one for None."""
    changed = [name for name in NodeStatus.model_fields if before is None or getattr(before, name) != getattr(now, name)]
    return now.model_dump_json(include=set(changed)).encode() + b"\n"


class NotAState(Exception):
    """What came is no line of a state."""


class StateReader:
    """Puts the lines of one stream together again."""

    def __init__(self, *, max_bytes: int) -> None:
        """max_bytes: of one line."""
        self._max_bytes = max_bytes
        self._rest = b""
        self._fields: dict[str, Any] = {}
        """As they came; models apart, as there may be hundreds of them and they seldom change."""
        self.status: NodeStatus | None = None
        """What the lines so far come to."""

    def take(self, content: bytes) -> bool:
        """Read on; many lines at once count as their last state. Whether it is another than before.

        Raises: NotAState.
        """
        *lines, self._rest = (self._rest + content).split(b"\n")
        if max(map(len, (*lines, self._rest))) > self._max_bytes:
            raise NotAState(f"a line is larger than {self._max_bytes:,} bytes")
        changed: dict[str, Any] = {}
        try:
            for line in lines:
                fields = orjson.loads(line)
                if not isinstance(fields, dict):
                    raise TypeError("a line is no object")
                changed |= fields
            if changed:
                self._change(changed)
        except (ValueError, TypeError) as error:
            raise NotAState(f"not understood: {type(error).__name__}") from error
        return bool(changed)

    def _change(self, changed: dict[str, Any]) -> None:
        models = changed.get("models")
        self._fields |= {name: value for name, value in changed.items() if name != "models"}
        # Without those that are known already: to read hundreds of models anew at each step would cost more than all else.
        status = NodeStatus.model_validate({**self._fields, "models": models or []})
        if models is None and self.status is not None:
            status = status.model_copy(update={"models": self.status.models})
        self.status = status
