"""An answer on its way to the client: bytes as they come, no faster than the client reads them."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from common.errors import RunCancelled
from common.web.clients import while_client_stays
from common.web.lending import client_socket
from router.body import Body
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
        pour: Callable[[Sink], Awaitable[None]] | None = None,
    ) -> None:
        self._chunks = body
        self._pour = pour
        self.status_code = status
        self.background = None
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with while_client_stays(receive):
                async with aclosing(self._chunks):
                    await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                    await self._poured(scope)
                    async for chunk in self._chunks:
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except RunCancelled:
            # Nobody is there to be told.
            return

    async def _poured(self, scope: Scope) -> None:
        socket = client_socket(scope)
        if self._pour is None or socket is None:
            return
        async with socket.lent() as lent:
            if lent is not None:
                try:
                    await self._pour(lent)
                except SinkGone:
                    lent.hang_up()
                    await asyncio.Event().wait()  # Until that is noticed where the client's leaving always is.
