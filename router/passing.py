"""An answer on its way to the client: bytes as they come, no faster than the client reads them."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from common.errors import RunCancelled
from common.web.clients import while_client_stays


class Passed(Response):
    """Each chunk of a body is sent on as soon as it is there. The body is closed with the answer, or when the client leaves."""

    def __init__(self, body: AsyncGenerator[bytes], *, status: int, headers: Mapping[str, str]) -> None:
        self._chunks = body
        self.status_code = status
        self.background = None
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with while_client_stays(receive):
                async with aclosing(self._chunks):
                    await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                    async for chunk in self._chunks:
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except RunCancelled:
            # Nobody is there to be told.
            return
