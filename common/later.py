"""What is done for an answer, or for what is sent to get one, but need not be done before it is on its way."""

import asyncio
from collections.abc import Callable
from typing import Any


def soon(work: Callable[..., object], *arguments: Any) -> None:
    """Do it in the event loop's next turn: after what was written in this one has been sent, before anything new is read."""
    asyncio.get_running_loop().call_soon(work, *arguments)
