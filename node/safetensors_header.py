"""Reads the header of a safetensors file and believes nothing in it.

A safetensors file is 8 bytes of header length (little-endian), a JSON header, then tensor bytes. Everything is
checked here, from at most 16 MiB of the file, before any library opens it: libraries differ in what they let through
(safetensors 0.8 takes duplicate keys; C++ readers trust offsets), and a lie found here names its file.
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_HEADER_BYTES = 16 * 1024 * 1024
"""The format allows 100 MB; the largest models have some 5,000 tensors, and 200 bytes for each."""
MAX_TENSORS = 50_000
MAX_COMMAS, MAX_BRACKETS = 1_000_000, 400_000
"""In the text of a header, strings included. They bound what it parses to: three bytes can be a list of 64, and a pair of a
few bytes 150. A tensor has twelve commas at most and three brackets; the rest is for what makers write as metadata."""
MAX_DIMENSIONS = 8
MAX_NAME_CHARS = 512
MAX_TENSOR_BYTES = 2**48
"""256 TiB: a product of dimensions beyond this is a lie, whatever the file's length says."""

DTYPE_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
"""Bytes of one element, by the format's names (safetensors 0.8). Sub-byte types are not weights diffusers can load."""
FLOAT_DTYPES = frozenset({"F8_E5M2", "F8_E4M3", "F8_E8M0", "F16", "BF16", "F32", "F64"})
"""Types that a load casts to the profile's dtype."""
LOADED_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of one such weight once it is cast, by the profile's names."""


class CheckpointRefused(Exception):
    """A file or folder is not loaded; the text names it and says why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor as its header describes it, after every check."""

    dtype: str
    shape: tuple[int, ...]
    begin_bytes: int
    end_bytes: int

    @property
    def elements(self) -> int:
        """Number of its elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Its bytes in the file."""
        return self.end_bytes - self.begin_bytes


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Every tensor of a safetensors file, by name. Raises: as `read_header_and_metadata`."""
    return read_header_and_metadata(path)[0]


def read_header_and_metadata(path: Path) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Every tensor of a safetensors file, by name, and the texts its maker wrote beside them.

    Raises: CheckpointRefused: another format in disguise, a truncated or lying header, overlapping or missing ranges,
    duplicate keys, more than MAX_TENSORS tensors; OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        file_bytes = os.fstat(file.fileno()).st_size
        start = file.read(9)
        if disguise := disguised_format(start):
            raise CheckpointRefused(path, f"not safetensors: {disguise}")
        header_bytes = int.from_bytes(start[:8], "little")
        if len(start) < 9:
            raise CheckpointRefused(path, f"truncated: {file_bytes} bytes")
        if header_bytes > MAX_HEADER_BYTES:
            raise CheckpointRefused(path, f"header of {header_bytes} bytes; at most {MAX_HEADER_BYTES} are read")
        if 8 + header_bytes > file_bytes:
            raise CheckpointRefused(path, f"truncated: {file_bytes} bytes, its header alone claims {header_bytes}")
        text = start[8:] + file.read(header_bytes - 1)
    if text.count(b",") > MAX_COMMAS or text.count(b"[") + text.count(b"{") > MAX_BRACKETS:
        raise CheckpointRefused(path, f"its header is none of a model: more than {MAX_COMMAS} values")
    header = _parse(path, text)
    tensors = {name: _entry(path, name, raw) for name, raw in header.items() if name != "__metadata__"}
    _check_ranges(path, tensors, file_bytes - 8 - header_bytes)
    return tensors, header.get("__metadata__", {})


def disguised_format(start: bytes) -> str | None:
    """What a file really is when its first bytes are not those of safetensors; None when they may be.

    start: its first 9 bytes or more. A pickle can begin like a small header length, so the brace that must follow
    the length decides first.
    """
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= MAX_HEADER_BYTES:
        return None
    if start.startswith(b"PK\x03\x04"):
        return "a zip archive, as torch.save writes pickles"
    if len(start) > 1 and start[0] == 0x80 and 1 <= start[1] <= 5:
        return "a pickle"
    if start.startswith(b"GGUF"):
        return "a GGUF file"
    if start.startswith(b"\x93NUMPY"):
        return "a NumPy file"
    return None if len(start) < 9 or start[8:9] == b"{" else "its header does not begin with a JSON object"


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(pairs) > MAX_TENSORS + 1:
            raise CheckpointRefused(path, f"more than {MAX_TENSORS} tensors")
        keys = dict(pairs)
        if len(keys) != len(pairs):
            raise CheckpointRefused(path, "the same key twice in its header")
        return keys

    try:
        header = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointRefused(path, f"its header is not JSON ({type(error).__name__})") from None
    if not isinstance(header, dict):
        raise CheckpointRefused(path, "its header is not a JSON object")
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointRefused(path, "its metadata is not a table of texts")
    return header


def _entry(path: Path, name: str, raw: Any) -> TensorEntry:
    def refuse(reason: str) -> CheckpointRefused:
        return CheckpointRefused(path, f"tensor {name[:80]!r}: {reason}")

    if not name or len(name) > MAX_NAME_CHARS:
        raise refuse(f"names have 1 to {MAX_NAME_CHARS} characters")
    if not isinstance(raw, dict) or raw.keys() != {"dtype", "shape", "data_offsets"}:
        raise refuse("expected exactly dtype, shape and data_offsets")
    dtype, shape, offsets = raw["dtype"], raw["shape"], raw["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise refuse(f"unknown dtype {str(dtype)[:20]!r}")
    if not _counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise refuse(f"a shape has at most {MAX_DIMENSIONS} whole numbers")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise refuse("data_offsets are two rising whole numbers")
    size_bytes = DTYPE_BYTES[dtype]
    for side in shape:
        # Checked at every factor: readers with 64-bit integers wrap here, and a zero side must not hide a huge one.
        size_bytes *= side
        if max(size_bytes, side) > MAX_TENSOR_BYTES:
            raise refuse("its dimensions multiply beyond any file")
    if size_bytes != offsets[1] - offsets[0]:
        raise refuse(f"{size_bytes} bytes by its shape, {offsets[1] - offsets[0]} by its offsets")
    return TensorEntry(dtype, tuple(shape), offsets[0], offsets[1])


def _counts(value: Any) -> bool:
    # bool is an int in Python, hence `type(...) is`.
    return isinstance(value, list) and all(type(item) is int and item >= 0 for item in value)


def _check_ranges(path: Path, tensors: dict[str, TensorEntry], body_bytes: int) -> None:
    """Ranges must lie one after another and end with the file: no overlap, no gap, nothing outside."""
    position = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin_bytes, item[1].end_bytes)):
        if tensor.begin_bytes != position:
            fault = "overlaps another" if tensor.begin_bytes < position else "leaves a gap before it"
            raise CheckpointRefused(path, f"tensor {name[:80]!r} {fault}")
        position = tensor.end_bytes
    if position != body_bytes:
        raise CheckpointRefused(path, f"its tensors need {position} bytes, the file has {body_bytes}")
