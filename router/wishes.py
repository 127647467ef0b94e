"""What a request wants of the queue, read from its headers, within its key's bounds: until when, and how urgently."""

import math
from dataclasses import dataclass
from enum import IntEnum

from common.catalog import KeyRecord, Limits
from common.errors import InvalidRequest
from common.web.headers import Headers

DEADLINE_HEADER = "x-deadline-s"
PRIORITY_HEADER = "x-priority"
MAX_DEADLINE_S = 86_400.0
_DEADLINE, _PRIORITY = DEADLINE_HEADER.encode(), PRIORITY_HEADER.encode()


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


AS_MOST = Wishes()
"""What most requests want: nothing of their own."""


def wishes_of(headers: Headers, key: KeyRecord, *, is_async: bool) -> Wishes:
    """What the headers say, else the key. Raises: InvalidRequest: they cannot be read, or go with an async run."""
    deadline, priority, limits = headers.get(_DEADLINE), headers.get(_PRIORITY), key.limits
    asked = deadline is not None or priority is not None
    if is_async and asked:
        name = PRIORITY_HEADER if deadline is None else DEADLINE_HEADER
        raise _invalid(name, "it is for requests that wait for their answer, not for 'Prefer: respond-async'")
    if is_async or not (asked or limits.deadline_s is not None or limits.priority is not None):
        return AS_MOST
    return Wishes(_priority(priority, limits), _deadline_s(deadline, limits))


def _priority(given: bytes | None, limits: Limits) -> Priority:
    """Not above the key's highest, which is normal where none is set: whoever asks for more gets that."""
    highest = Priority.NORMAL if limits.priority is None else Priority[limits.priority.upper()]
    if given is None:
        return max(Priority.NORMAL, highest)
    asked = given.decode("latin-1")
    if asked not in NAMES:
        raise _invalid(PRIORITY_HEADER, f"expected one of {', '.join(NAMES)}, but got {asked[:40]!r}")
    return max(Priority[asked.upper()], highest)


def _deadline_s(given: bytes | None, limits: Limits) -> float | None:
    if given is None:
        return limits.deadline_s
    asked = given.decode("latin-1")
    try:
        seconds = float(asked)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds <= MAX_DEADLINE_S:
        raise _invalid(DEADLINE_HEADER, f"expected seconds above 0 and up to {MAX_DEADLINE_S:g}, but got {asked[:40]!r}")
    return seconds


def _invalid(header: str, why: str) -> InvalidRequest:
    return InvalidRequest(f"Invalid '{header}': {why}.", param=header)
