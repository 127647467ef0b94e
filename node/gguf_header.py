"""Reads the header of a GGUF file and believes nothing in it.

A GGUF file is `GGUF`, a version, two counts, typed metadata, the tensors' names, shapes and offsets, then, at the next
multiple of its alignment, tensor bytes. Readers written in C trust much of it: products of dimensions that wrap, arrays
in arrays, strings of a gigabyte and an alignment of one have each crashed or stalled some. Everything is checked here,
without a byte of weights read, before any library opens the file. Format: ggml's docs/gguf.md, versions 2 and 3.
"""

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from node.safetensors_header import MAX_NAME_CHARS, MAX_TENSOR_BYTES, MAX_TENSORS, CheckpointRefused, TensorEntry

MAGIC = b"GGUF"
VERSIONS = (2, 3)
"""Version 1 had counts of 32 bits; nobody writes it any more."""
MAX_HEADER_BYTES = 100 * 1024 * 1024
"""Vocabulary and merges of a language model are 10 MB."""
MAX_KEYS = 10_000
MAX_KEY_BYTES = 4096
MAX_STRING_BYTES = 1024 * 1024
"""Chat templates are the longest, at some ten thousand."""
MAX_ARRAY_ITEMS = 1_000_000
MAX_ITEMS_IN_ALL = 2_000_000
"""Of all arrays together: a second of reading them. Vocabularies have up to 262,144."""
MAX_DIMENSIONS = 4
ALIGNMENTS = tuple(2**power for power in range(3, 17))
DEFAULT_ALIGNMENT = 32

GGML_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}
"""Number in the file -> name, elements of a block, bytes of a block (ggml 0.9.8)."""

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Value types of metadata, as `struct` calls them."""
Value = str | int | float | bool


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """What a file says of itself, after every check."""

    metadata: Mapping[str, Value]
    """Of the keys `general.*`, those with a single value. What else a file holds is walked over, never kept."""
    tensors: Mapping[str, TensorEntry]
    """By name. Shapes are outermost first, as in safetensors: the other way round from the file's own."""


def read_gguf_header(path: Path) -> GGUFHeader:
    """Metadata and tensors of a GGUF file.

    Raises: CheckpointRefused: not GGUF, a version or type nobody knows, a truncated or lying header, overlapping or
    missing ranges, the same name twice, anything beyond the limits above; OSError: the file cannot be read.
    """
    with path.open("rb", buffering=1024 * 1024) as file:
        cursor = _Cursor(path, file)
        if (magic := cursor.bytes(4)) != MAGIC:
            raise cursor.refuse(f"not GGUF: it begins with {magic!r}")
        if (version := cursor.number("I")) not in VERSIONS:
            raise cursor.refuse(f"GGUF version {version}; versions 2 and 3 are read")
        tensor_count, key_count = cursor.number("Q"), cursor.number("Q")
        if tensor_count > MAX_TENSORS:
            raise cursor.refuse(f"{tensor_count} tensors; at most {MAX_TENSORS} are read")
        if key_count > MAX_KEYS:
            raise cursor.refuse(f"{key_count} metadata keys; at most {MAX_KEYS} are read")
        metadata, alignment = _metadata(cursor, key_count)
        tensors: dict[str, TensorEntry] = {}
        for _ in range(tensor_count):
            name, entry = _tensor(cursor, alignment)
            if name in tensors:
                raise cursor.refuse(f"tensor {name[:80]!r} twice")
            tensors[name] = entry
        _check_ranges(cursor, tensors, alignment)
    return GGUFHeader(metadata, tensors)


class _Cursor:
    """A place in a file that refuses to pass its end or the limit."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file_bytes = os.fstat(file.fileno()).st_size
        self.position = 0
        self.items_left = MAX_ITEMS_IN_ALL
        self._file = file

    def refuse(self, reason: str) -> CheckpointRefused:
        return CheckpointRefused(self.path, reason)

    def _advance(self, size_bytes: int) -> None:
        self.position += size_bytes
        if self.position > self.file_bytes:
            raise self.refuse(f"truncated: {self.file_bytes} bytes, its header alone needs {self.position}")
        if self.position > MAX_HEADER_BYTES:
            raise self.refuse(f"its header is longer than the {MAX_HEADER_BYTES} bytes that are read")

    def bytes(self, size_bytes: int) -> bytes:
        self._advance(size_bytes)
        read = self._file.read(size_bytes)
        if len(read) != size_bytes:
            raise self.refuse("it was cut off while it was read")
        return read

    def skip(self, size_bytes: int) -> None:
        self._advance(size_bytes)
        self._file.seek(size_bytes, os.SEEK_CUR)

    def number(self, kind: str) -> int:
        value: int = self.scalar(kind)  # type: ignore[assignment]
        return value

    def scalar(self, kind: str) -> Value:
        value: Value = struct.unpack(f"<{kind}", self.bytes(struct.calcsize(f"<{kind}")))[0]
        return value

    def length(self, what: str, limit_bytes: int) -> int:
        """The length of the string that follows. Checked before anything is allocated for it."""
        length = self.number("Q")
        if length > limit_bytes:
            raise self.refuse(f"a {what} of {length} bytes; at most {limit_bytes} are read")
        return length

    def text(self, what: str, limit_bytes: int) -> str:
        try:
            return self.bytes(self.length(what, limit_bytes)).decode("utf-8")
        except UnicodeDecodeError:
            raise self.refuse(f"a {what} is not UTF-8") from None


def _metadata(cursor: _Cursor, count: int) -> tuple[dict[str, Value], int]:
    """The values kept, and the alignment."""
    seen: set[str] = set()
    kept: dict[str, Value] = {}
    alignment = DEFAULT_ALIGNMENT
    for _ in range(count):
        key = cursor.text("key", MAX_KEY_BYTES)
        if key in seen:
            raise cursor.refuse(f"the key {key[:80]!r} twice")
        seen.add(key)
        kind = cursor.number("I")
        if key == "general.alignment":
            alignment = _alignment(cursor, kind)
        elif kind == _ARRAY:
            _walk_array(cursor, key)
        elif kind == _STRING and not key.startswith("general."):
            cursor.skip(cursor.length("string", MAX_STRING_BYTES))
        elif kind == _STRING:
            kept[key] = cursor.text("string", MAX_STRING_BYTES)
        elif kind in _SCALARS:
            value = cursor.scalar(_SCALARS[kind])
            if key.startswith("general."):
                kept[key] = value
        else:
            raise cursor.refuse(f"the key {key[:80]!r} has a value of the unknown type {kind}")
    return kept, alignment


def _alignment(cursor: _Cursor, kind: int) -> int:
    if _SCALARS.get(kind) != "I":
        raise cursor.refuse("its alignment is not a number of 32 bits")
    alignment = cursor.number("I")
    if alignment not in ALIGNMENTS:
        raise cursor.refuse(f"an alignment of {alignment}; it is a power of two of {ALIGNMENTS[0]} to {ALIGNMENTS[-1]}")
    return alignment


def _walk_array(cursor: _Cursor, key: str) -> None:
    kind, items = cursor.number("I"), cursor.number("Q")
    if items > min(MAX_ARRAY_ITEMS, cursor.items_left):
        raise cursor.refuse(f"the array {key[:80]!r} has {items} items; at most {MAX_ARRAY_ITEMS} are read")
    cursor.items_left -= items
    if kind == _STRING:
        for _ in range(items):
            cursor.skip(cursor.length("string", MAX_STRING_BYTES))
    elif kind in _SCALARS:
        cursor.skip(items * struct.calcsize(f"<{_SCALARS[kind]}"))
    elif kind == _ARRAY:
        raise cursor.refuse(f"the array {key[:80]!r} holds arrays, which no model needs")
    else:
        raise cursor.refuse(f"the array {key[:80]!r} holds values of the unknown type {kind}")


def _tensor(cursor: _Cursor, alignment: int) -> tuple[str, TensorEntry]:
    name = cursor.text("tensor name", MAX_NAME_CHARS)

    def refuse(reason: str) -> CheckpointRefused:
        return cursor.refuse(f"tensor {name[:80]!r}: {reason}")

    if not name:
        raise refuse("it has no name")
    dimensions = cursor.number("I")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise refuse(f"{dimensions} dimensions; there are 1 to {MAX_DIMENSIONS}")
    sides = struct.unpack(f"<{dimensions}Q", cursor.bytes(8 * dimensions))
    number, offset = cursor.number("I"), cursor.number("Q")
    if number not in GGML_TYPES:
        raise refuse(f"unknown type {number}")
    dtype, block, block_bytes = GGML_TYPES[number]
    elements = 1
    for side in sides:
        # Checked at every factor: readers with 64-bit integers wrap here.
        elements *= side
        if not 0 < elements <= MAX_TENSOR_BYTES:
            raise refuse("its dimensions multiply to nothing, or beyond any file")
    if sides[0] % block:
        raise refuse(f"rows of {sides[0]}; {dtype} comes in blocks of {block}")
    if offset % alignment:
        raise refuse(f"its offset {offset} is not a multiple of {alignment}")
    return name, TensorEntry(dtype, sides[::-1], offset, offset + elements // block * block_bytes)


def _check_ranges(cursor: _Cursor, tensors: Mapping[str, TensorEntry], alignment: int) -> None:
    """Ranges must lie one after another, with less than one alignment between them, and end with the file."""
    body_bytes = cursor.file_bytes - _aligned(cursor.position, alignment)
    position = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin_bytes, item[1].end_bytes)):
        if tensor.begin_bytes != _aligned(position, alignment):
            fault = "overlaps another" if tensor.begin_bytes < position else "leaves a gap before it"
            raise cursor.refuse(f"tensor {name[:80]!r} {fault}")
        position = tensor.end_bytes
    # Writers pad the last tensor too, or leave it.
    if tensors and not position <= body_bytes <= _aligned(position, alignment):
        raise cursor.refuse(f"its tensors need {position} bytes, the file has {max(0, body_bytes)}")


def _aligned(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment
