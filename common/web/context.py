"""The outermost layer of both apps: a request id, a log line, and an answer for what no handler caught."""

import asyncio
import os
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.errors import AquatintError, Unavailable
from common.later import Later
from common.logs import bind_only, get_logger
from common.node_api import REQUEST_ID_HEADER
from common.tracing import request_span
from common.web.errors import answer_error, unexpected
from common.web.headers import headers_of

log = get_logger(__name__)
_HEADER = REQUEST_ID_HEADER.encode()
_GOOD_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)

Observer = Callable[[str, str, int, float], None]
"""Called when an answer ends: method, route template, status, seconds."""


class RequestContext:
    """Pure ASGI, so that bodies stream through it untouched and a client's leaving is seen by the handler."""

    def __init__(self, app: ASGIApp, later: Later, observe: Observer | None = None) -> None:
        """later: when an answer's end is told of."""
        self._app = app
        self._later = later
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            self._later.catch_up()  # The server stops.
            return
        request_id = scope.setdefault("state", {})["request_id"] = _id_of(scope)
        bind_only(request_id=request_id)
        await request_span(scope, self._answered(scope, receive, send, request_id))

    async def _answered(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> dict[str, Any]:
        """Have the app answer, or answer for it. Returns: attributes of the request's span."""
        status = 0
        began = time.perf_counter()

        def send_with_id(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (_HEADER, request_id.encode())]
            return send(message)

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
            # The template, never the path: paths hold ids and whatever a scanner sends.
            route = str(getattr(scope.get("route"), "path", "unmatched"))
            self._later.put(self._report, scope["method"], route, status, time.perf_counter() - began)
        return {"http.route": route, "http.response.status_code": status}

    def _report(self, method: str, route: str, status: int, seconds: float) -> None:
        if self._observe is not None:
            self._observe(method, route, status, seconds)
        quiet = route in ("/health", "/ready", "/metrics", "/node/v1/status", "/node/v1/events")
        (log.debug if quiet else log.info)("request", method=method, route=route, status=status, ms=round(seconds * 1000, 1))


def _id_of(scope: Scope) -> str:
    """What the client calls its request, if that is fit for a log; else a name of ours."""
    given = headers_of(scope).get(_HEADER, b"").decode("latin-1")
    return given if _GOOD_ID.fullmatch(given) else f"req_{os.urandom(16).hex()}"
