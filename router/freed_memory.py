"""Memory of bodies that pass through, kept for the next ones.

glibc gives freed memory back to the system as soon as half a megabyte of it lies at the heap's end, and takes it again page
by page: for pieces of a quarter of a megabyte, which pictures come in, that costs a sixth of the router's whole CPU time.
What is larger than a threshold it takes from the system each time anew: for an upload of 8 MB that takes seven times as long
as putting its pieces together.
"""

import ctypes

# <malloc.h>
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

KEPT_BYTES = 64 * 1024 * 1024
"""What may lie free at the heap's end."""
PIECE_BYTES = 32 * 1024 * 1024
"""Larger pieces are the system's own still and go back at once. glibc takes no larger threshold."""


def keep_freed_memory() -> bool:
    """From now on, in this process. False: its C library has no such settings, as musl's and macOS's have not."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, PIECE_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES))
