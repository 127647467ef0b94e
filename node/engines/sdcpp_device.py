"""The devices stable-diffusion.cpp was built for, asked of the ggml inside it."""

import ctypes
from dataclasses import dataclass
from typing import Any

from stable_diffusion_cpp import stable_diffusion_cpp as sd

_KINDS = {"CUDA": "cuda", "ROCm": "cuda", "MUSA": "cuda", "Metal": "mps", "MTL": "mps"}
"""ggml's names of its backends -> ours. AMD's cards are `cuda` to torch as well."""


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """One GPU as ggml sees it."""

    kind: str
    name: str
    total_bytes: int
    free_bytes: int


def _function(name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(sd._lib, name)
    function.restype, function.argtypes = result, list(arguments)
    return function


def first_gpu() -> GpuMemory | None:
    """The GPU the library takes; None when it has none, or was built without."""
    count = _function("ggml_backend_dev_count", ctypes.c_size_t)
    get = _function("ggml_backend_dev_get", ctypes.c_void_p, ctypes.c_size_t)
    registry = _function("ggml_backend_dev_backend_reg", ctypes.c_void_p, ctypes.c_void_p)
    registry_name = _function("ggml_backend_reg_name", ctypes.c_char_p, ctypes.c_void_p)
    description = _function("ggml_backend_dev_description", ctypes.c_char_p, ctypes.c_void_p)
    sizes = ctypes.POINTER(ctypes.c_size_t)
    memory = _function("ggml_backend_dev_memory", None, ctypes.c_void_p, sizes, sizes)
    for index in range(count()):
        device = get(index)
        kind = _KINDS.get(registry_name(registry(device)).decode())
        if kind is not None:
            free_bytes, total_bytes = ctypes.c_size_t(), ctypes.c_size_t()
            memory(device, ctypes.byref(free_bytes), ctypes.byref(total_bytes))
            name = description(device).decode("utf-8", "replace")
            return GpuMemory(kind, name, total_bytes.value, free_bytes.value)
    return None
