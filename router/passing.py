"""An answer on its way to the client: bytes as they come, no faster than the client reads them."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from common.errors import RunCancelled
from common.web import until_client_leaves
from common.web.lending import client_socket
from router.body import Body, Whole
from router.wire import Sink, SinkGone


class Passed(Response):
    """Each chunk of a body is sent on as soon as it is there, and what can `pour` past us does. The body is closed with the
    answer, or when the client leaves."""

    def __init__(
        self,
        body: Body,
        *,
        status: int,
        headers: Mapping[str, str],
        pour: Callable[[Sink], Awaitable[bool]] | None = None,
    ) -> None:
        """headers: their names in small letters."""
        self._body = body
        self._pour = pour
        self.status_code = status
        self.background = None
        self.raw_headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        if isinstance(self._body, Whole):
            # Whether or not its client is still there, nobody waits for anything.
            if (socket := client_socket(scope)) is not None:
                socket.keep_head()
            await send(start)
            await send({"type": "http.response.body", "body": self._body.take(), "more_body": False})
            return
        try:
            await until_client_leaves(Request(scope, receive), self._send(start, scope, send))
        except RunCancelled:
            # Nobody is there to be told.
            return
        finally:
            await self._body.aclose()

    async def _send(self, start: Message, scope: Scope, send: Send) -> None:
        await send(start)
        if self._pour is None or not await self._poured(self._pour, scope):
            async for chunk in self._body:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _poured(self, pour: Callable[[Sink], Awaitable[bool]], scope: Scope) -> bool:
        """Whether all of the body has left."""
        socket = client_socket(scope)
        lent = None if socket is None else await socket.lend()
        if lent is None:
            return False
        try:
            return await pour(lent)
        except SinkGone:
            lent.hang_up()
            await asyncio.Event().wait()  # Until that is noticed where the client's leaving always is.
            return False
        finally:
            lent.give_back()
