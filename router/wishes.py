"""What a request wants of the queue, read from its headers, within its key's bounds: until when, and how urgently."""

import math
from dataclasses import dataclass
from enum import IntEnum

from starlette.requests import Request

from common.catalog import KeyRecord
from common.errors import InvalidRequest

DEADLINE_HEADER = "x-deadline-s"
PRIORITY_HEADER = "x-priority"
MAX_DEADLINE_S = 86_400.0


class Priority(IntEnum):
    """Classes of those that wait. The first that is asked for goes first, within a share that leaves the others theirs."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


NAMES = tuple(each.name.lower() for each in Priority)


@dataclass(frozen=True, slots=True)
class Wishes:
    """Of one request. deadline_s: seconds from its acceptance after which its answer is not wanted any more."""

    priority: Priority = Priority.NORMAL
    deadline_s: float | None = None


def wishes_of(request: Request, key: KeyRecord, *, is_async: bool) -> Wishes:
    """What the headers say, else the key. Raises: InvalidRequest: they cannot be read, or go with an async run."""
    asked = [name for name in (DEADLINE_HEADER, PRIORITY_HEADER) if name in request.headers]
    if is_async:
        if asked:
            raise _invalid(asked[0], "it is for requests that wait for their answer, not for 'Prefer: respond-async'")
        return Wishes()
    return Wishes(_priority(request.headers.get(PRIORITY_HEADER), key), _deadline_s(request.headers.get(DEADLINE_HEADER), key))


def _priority(asked: str | None, key: KeyRecord) -> Priority:
    """Not above the key's highest, which is normal where none is set: whoever asks for more gets that."""
    highest = Priority.NORMAL if key.limits.priority is None else Priority[key.limits.priority.upper()]
    if asked is None:
        return max(Priority.NORMAL, highest)
    if asked not in NAMES:
        raise _invalid(PRIORITY_HEADER, f"expected one of {', '.join(NAMES)}, but got {asked[:40]!r}")
    return max(Priority[asked.upper()], highest)


def _deadline_s(asked: str | None, key: KeyRecord) -> float | None:
    if asked is None:
        return key.limits.deadline_s
    try:
        seconds = float(asked)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= MAX_DEADLINE_S:
        raise _invalid(DEADLINE_HEADER, f"expected seconds above 0 and up to {MAX_DEADLINE_S:g}, but got {asked[:40]!r}")
    return seconds


def _invalid(header: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid '{header}': {why}.", param=header)
