"""Paths as clients write them: with a slash too many, or without `/v1`."""

from starlette.types import ASGIApp, Receive, Scope, Send

_OPENAI = ("/images/", "/models")


def lenient(path: str) -> str:
    """The path of the route that a client means."""
    path = path.rstrip("/") or "/"
    return f"/v1{path}" if path.startswith(_OPENAI) else path


class LenientPaths:
    """Drops a trailing slash and adds a missing `/v1` before routing. A redirect would do neither: SDKs drop the body of
    a redirected POST, or refuse to follow."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = lenient(scope["path"])
            # In place: the layers outside read the route from this very scope.
            scope["path"], scope["raw_path"] = path, path.encode()
        await self._app(scope, receive, send)
