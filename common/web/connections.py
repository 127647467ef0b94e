"""The clients that are connected: as many as the process has files for, less those that answering them takes."""

import resource
import time
from collections import OrderedDict
from collections.abc import Iterator
from typing import Protocol

from common.logs import get_logger

log = get_logger(__name__)

MOST_OPEN_FILES = 65_536
KEPT_FILES = 64
"""For whatever else a process opens, and at least"""
KEPT_SHARE = 1 / 8
"""of all it may have: a run takes a connection to its node, and an answer on its way four descriptors for a moment."""
SAID_EVERY_S = 10.0


class Connection(Protocol):
    """One client's."""

    def abort(self) -> None:
        """Close it at once, whatever is on its way."""


class Connections:
    """uvicorn's set of them, with a bound.

    Whoever opens connections needs no key, so it must not be they who keep others out: where there are too many, one goes of
    which no request has come as yet, or none since its last was answered, the one longest silent first. Only where each is
    being answered it is the newcomer.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._silent: OrderedDict[Connection, None] = OrderedDict()
        """The longest silent first."""
        self._asking: set[Connection] = set()
        self._said_s = -SAID_EVERY_S

    def __len__(self) -> int:
        return len(self._silent) + len(self._asking)

    def __iter__(self) -> Iterator[Connection]:
        yield from self._silent
        yield from self._asking

    def add(self, connection: Connection) -> None:
        """One more, that has not asked for anything yet."""
        self._silent[connection] = None

    def discard(self, connection: Connection) -> None:
        """It is closed."""
        self._silent.pop(connection, None)
        self._asking.discard(connection)

    def asks(self, connection: Connection) -> None:
        """The head of a request of its is here."""
        if connection in self._silent:
            del self._silent[connection]
            self._asking.add(connection)

    def was_answered(self, connection: Connection) -> None:
        """It waits for nothing any more."""
        if connection in self._asking:
            self._asking.remove(connection)
            self._silent[connection] = None

    def make_room(self) -> None:
        """Close what is too many."""
        while len(self) > self._most and self._silent:
            connection, _ = self._silent.popitem(last=False)
            connection.abort()
            if time.monotonic() >= self._said_s + SAID_EVERY_S:
                self._said_s = time.monotonic()
                log.warning("too_many_connections", most=self._most, asking=len(self._asking))


def allow_open_files() -> None:
    """Each client that waits is an open file; the 1,024 that many systems begin with are thought for programs of another
    kind. What the system's administrator allows at most stays."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def most_connections() -> int:
    """Of clients, that this process can have at a time."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = MOST_OPEN_FILES if soft == resource.RLIM_INFINITY else soft
    return max(1, files - max(KEPT_FILES, round(KEPT_SHARE * files)))
