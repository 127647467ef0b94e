"""Whether some bytes are in others, asked of megabytes that hardly ever have them: of files in a form, for its delimiter."""

import ctypes

_memmem = getattr(ctypes.CDLL(None), "memmem", None)
if _memmem is not None:
    _memmem.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]
    _memmem.restype = ctypes.c_void_p


def contains(content: bytes, wanted: bytes) -> bool:
    """The same as `wanted in content`, in half the time: glibc's memmem(3) skips farther than CPython's search, by pairs of
    bytes instead of six bits of one."""
    if _memmem is None:
        return wanted in content
    return _memmem(content, len(content), wanted, len(wanted)) is not None
