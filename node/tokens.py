"""The token that opens a node to routers and operators, and its exchange for another.

A new token does not shut the old one out at once: the router that brought it has yet to write it down, and others have yet to
read it there. The old one opens until `GRACE_S` after the new one was first used, and for ever if it never is.
"""

import secrets
import time
from pathlib import Path

from common.errors import Conflict
from common.secret_files import create_once, replace

GRACE_S = 60.0
"""Several times as long as routers take to notice what another one changed in the catalog."""
_BEFORE = ".before"


class Tokens:
    """The one or two tokens that open this node."""

    def __init__(self, current: str, *, before: str | None = None, path: Path | None = None) -> None:
        """path: where the current one is kept; None for a token that the settings give, which cannot be exchanged."""
        self._current, self._before, self._path = current, before, path
        self._before_until_s: float | None = None
        """On the monotonic clock; None while the current one was never used."""

    @property
    def current(self) -> str:
        """What a router should come with."""
        return self._current

    def opened_by(self, secret: str) -> bool:
        """Whether this is the token, or still the one before it."""
        is_current = secrets.compare_digest(secret.encode(), self._current.encode())
        if self._before is None:
            return is_current
        now_s = time.monotonic()
        if is_current and self._before_until_s is None:
            self._before_until_s = now_s + GRACE_S
        if self._before_until_s is not None and now_s >= self._before_until_s:
            self._forget()
            return is_current
        is_before = secrets.compare_digest(secret.encode(), self._before.encode())
        return is_current or is_before

    def exchange(self, token: str) -> None:
        """Take another token, on the disk before it is in force. Raises: Conflict: the settings give the token."""
        if self._path is None:
            raise Conflict("This node's token is given by its settings, and is changed there.")
        if token == self._current:
            return
        replace(self._path.with_name(self._path.name + _BEFORE), self._current.encode())
        replace(self._path, token.encode())
        self._current, self._before, self._before_until_s = token, self._current, None

    def _forget(self) -> None:
        assert self._path is not None
        self._path.with_name(self._path.name + _BEFORE).unlink(missing_ok=True)
        self._before = self._before_until_s = None


def load_or_create_tokens(path: Path) -> Tokens:
    """The tokens kept at `path`, or one made with mode 0600 where there is none. Two nodes that start at once agree."""
    create_once(path, f"node-{secrets.token_urlsafe(32)}".encode())
    before = path.with_name(path.name + _BEFORE)
    return Tokens(path.read_text().strip(), before=before.read_text().strip() if before.exists() else None, path=path)
