"""Imports without the garbage collector, which looks through all that is there, again and again, while nothing can be free:
a fifth of the four seconds that a worker's libraries take."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """For the first imports of a process. What they made stays for ever, and no later collection looks through it: with
    torch and diffusers that would stop the process for a quarter of a second."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()
