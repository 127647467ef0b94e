"""The outermost layer of both apps: a request id, a log line, and an answer for what no handler caught."""

import asyncio
import re
import secrets
import time
from collections.abc import Callable

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.errors import AquatintError, Unavailable
from common.logs import get_logger
from common.node_api import REQUEST_ID_HEADER
from common.tracing import request_span
from common.web.errors import answer_error, unexpected

log = get_logger(__name__)
_HEADER = REQUEST_ID_HEADER.encode()
_GOOD_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)

Observer = Callable[[str, str, int, float], None]
"""Called when an answer ends: method, route template, status, seconds."""


class RequestContext:
    """Pure ASGI, so that bodies stream through it untouched and a client's leaving is seen by the handler."""

    def __init__(self, app: ASGIApp, observe: Observer | None = None) -> None:
        self._app = app
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == _HEADER), b"").decode("latin-1")
        request_id = given if _GOOD_ID.fullmatch(given) else f"req_{secrets.token_hex(16)}"
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        with request_span(scope) as attributes:
            status = await self._answered(scope, receive, send, request_id)
            attributes |= {"http.route": _route(scope), "http.response.status_code": status}

    async def _answered(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> int:
        """Have the app answer, or answer for it. Returns: the status."""
        status = 0
        began = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (_HEADER, request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except asyncio.CancelledError:
            if status:
                raise
            # Only a server that is told to stop now cancels a request: a client that has left is noticed by handlers.
            await answer_error(Unavailable("The server is stopping.", retry_after_s=1))(scope, receive, send_with_id)
        except Exception as error:
            if status:
                # Half an answer is out: cutting the connection is the only honest end.
                log.exception("answer_cut_off")
                raise
            ours = error if isinstance(error, AquatintError) else unexpected(error)
            await answer_error(ours)(scope, receive, send_with_id)
        finally:
            self._report(scope, status, time.perf_counter() - began)
        return status

    def _report(self, scope: Scope, status: int, seconds: float) -> None:
        route = _route(scope)
        if self._observe is not None:
            self._observe(scope["method"], route, status, seconds)
        quiet = route in ("/health", "/ready", "/metrics", "/node/v1/status", "/node/v1/events")
        (log.debug if quiet else log.info)(
            "request", method=scope["method"], route=route, status=status, ms=round(seconds * 1000, 1)
        )


def _route(scope: Scope) -> str:
    # The template, never the path: paths hold ids and whatever a scanner sends.
    return str(getattr(scope.get("route"), "path", "unmatched"))
