"""The app that is served: requests for pictures take a short way to their handlers, all others FastAPI's.

    POST /v1/images/...    request id, log line, metrics and errors (`RequestContext`); the key; the route's own endpoint
    anything else          FastAPI: its middleware, its routing, its dependencies

On FastAPI's way a picture costs several times what the passing on of its bytes costs (`aquatint bench router`). The routes
are declared to FastAPI all the same: their paths and endpoints are taken from there, and its document tells of them.
"""

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from common.catalog import KeyRecord
from common.later import Later
from common.web import RequestContext
from common.web.context import Observer
from common.web.keys import presented_key
from common.web.lending import client_socket
from common.web.paths import lenient
from router.api import images
from router.arrivals import Arrivals
from router.auth import user_with
from router.services import Services
from router.turns import Turns

Endpoint = Callable[[Request, KeyRecord, Services], Awaitable[Response]]


class Front(FastAPI):
    """FastAPI with a short way for `router/api/images.py`."""

    def __init__(self, *, later: Later, observe: Observer, **options: Any) -> None:
        super().__init__(**options)
        declared = [route for route in images.api.routes if isinstance(route, APIRoute) and route.include_in_schema]
        self._pictures = {route.path: route for route in declared}
        self._arrivals, self._turns = Arrivals(), Turns()
        self._short_way = RequestContext(self._answer, later, observe)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            path = scope["path"] if scope["path"] in self._pictures else lenient(scope["path"])
            route = self._pictures.get(path)
            if route is not None:
                # As FastAPI would leave it: parts of the answer, and the log line, read the route and the app from here.
                scope["path"], scope["raw_path"] = path, path.encode()
                scope["app"], scope["route"], scope["endpoint"] = self, route, route.endpoint
                await self._short_way(scope, receive, send)
                return
        await super().__call__(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        services: Services = self.state.services
        secret, socket = presented_key(scope), client_socket(scope)
        arrival = scope["state"]["arrival"] = self._arrivals.begun(secret)
        if socket is not None:
            socket.when_whole(arrival.came)
        try:
            key = await user_with(secret, services)
            await self._turns.come(arrival.at_s)
            endpoint: Endpoint = scope["endpoint"]
            response = await endpoint(Request(scope, receive, send), key, services)
        finally:
            arrival.over()
        await response(scope, receive, send)
