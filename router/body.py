"""The body of an answer on its way, whoever makes it: of a node, of several, out of the catalog."""

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Self

Ended = Callable[[bool], Awaitable[None] | None]
"""What is to be done at the end of a body. Called once, with whether all of it was read."""


class Body:
    """Chunks as they come, and what is to be done at their end: whether they were read to it, in part, or not at all.

    A generator alone does not do: one whose first chunk was never asked for runs none of its `finally` when it is closed.
    """

    def __init__(self, chunks: "AsyncGenerator[bytes] | Body", ended: Ended | None = None) -> None:
        self._chunks = chunks
        self._ended = ended

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._chunks)
        except BaseException as error:
            await self._end(whole=isinstance(error, StopAsyncIteration))
            raise

    async def aclose(self) -> None:
        """Nobody reads on."""
        try:
            await self._chunks.aclose()
        finally:
            await self._end(whole=False)

    async def _end(self, *, whole: bool) -> None:
        ended, self._ended = self._ended, None
        if ended is not None and (work := ended(whole)) is not None:
            await work


class Whole(Body):
    """One that is there already, and holds nothing that is to be let go of at its end."""

    def __init__(self, content: bytes) -> None:
        self._content: bytes | None = content

    async def __anext__(self) -> bytes:
        if self._content is None:
            raise StopAsyncIteration
        return self.take()

    def take(self) -> bytes:
        """What is unread: all of it or nothing."""
        content, self._content = self._content, None
        return content or b""

    async def aclose(self) -> None:
        """Nobody reads on."""
        self._content = None
