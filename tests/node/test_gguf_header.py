"""GGUF headers that lie are refused before any library opens the file, quickly and in little memory."""

import struct
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.gguf_header import MAX_HEADER_BYTES, read_gguf_header
from node.safetensors_header import CheckpointRefused

F32, F16, Q4_0 = 0, 1, 2
U32, STRING, ARRAY, U64 = 4, 8, 9, 10


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def array(kind: int, items: int, content: bytes) -> bytes:
    return struct.pack("<IQ", kind, items) + content


def tensor(name: str | bytes, sides: list[int], offset: int, kind: int = F32) -> bytes:
    return text(name) + struct.pack(f"<I{len(sides)}QIQ", len(sides), *sides, kind, offset)


def gguf_file(
    keys: list[bytes] = [],  # noqa: B006
    tensors: list[bytes] = [],  # noqa: B006
    body: bytes = b"",
    *,
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    """counts: of tensors and of keys, where the file is to lie about them."""
    told = counts or (len(tensors), len(keys))
    head = b"GGUF" + struct.pack("<IQQ", version, *told) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + body if tensors else head


ARCHITECTURE = key("general.architecture", STRING, text("flux"))
GOOD = gguf_file([ARCHITECTURE], [tensor("a", [8, 2], 0), tensor("b", [32], 64, Q4_0)], bytes(64 + 18))


def test_a_sound_file_is_read_with_shapes_the_way_safetensors_has_them(tmp_path: Path):
    path = tmp_path / "sound.gguf"
    path.write_bytes(GOOD)

    header = read_gguf_header(path)

    assert header.metadata == {"general.architecture": "flux"}
    assert {name: (t.dtype, t.shape, t.size_bytes) for name, t in header.tensors.items()} == {
        "a": ("F32", (2, 8), 64),
        "b": ("Q4_0", (32,), 18),
    }


@pytest.mark.parametrize("padding", [0, 14])
def test_the_last_tensor_may_be_padded_or_not(tmp_path: Path, padding: int):
    path = tmp_path / "sound.gguf"
    path.write_bytes(GOOD + bytes(padding))

    assert len(read_gguf_header(path).tensors) == 2


def test_another_alignment_and_a_vocabulary_are_walked_over(tmp_path: Path):
    words = key("tokenizer.ggml.tokens", ARRAY, array(STRING, 3, text("a") + text("b") + text("")))
    scores = key("tokenizer.ggml.scores", ARRAY, array(6, 5, bytes(20)))
    aligned = key("general.alignment", U32, struct.pack("<I", 64))
    path = tmp_path / "sound.gguf"
    path.write_bytes(gguf_file([words, scores, aligned], [tensor("a", [2], 0), tensor("b", [1], 64)], bytes(68), alignment=64))

    assert set(read_gguf_header(path).tensors) == {"a", "b"}


def claims(kind: int, value: bytes) -> bytes:
    return gguf_file([key("k", kind, value)])


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "truncated"),
    "only-the-magic": (b"GGUF", "truncated"),
    "another-magic": (b"GGJT" + bytes(60), "not GGUF"),
    "zip": (b"PK\x03\x04" + bytes(60), "not GGUF"),
    "version-1": (gguf_file(version=1), "GGUF version 1"),
    "version-99": (gguf_file(version=99), "GGUF version 99"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "GGUF version 50331648"),
    "tensors-2^63": (gguf_file(counts=(2**63, 0)), "at most 50000"),
    "tensors-that-are-not-there": (gguf_file(counts=(1000, 0)), "truncated"),
    "keys-2^63": (gguf_file(counts=(0, 2**63)), "at most 10000"),
    "keys-that-are-not-there": (gguf_file(counts=(0, 5)), "truncated"),
    "key-1GiB": (gguf_file(counts=(0, 1)) + struct.pack("<Q", 2**30), "a key of 1073741824 bytes"),
    "key-not-utf-8": (gguf_file([key(b"\xff\xfe", U32, bytes(4))]), "is not UTF-8"),
    "key-twice": (gguf_file([ARCHITECTURE, ARCHITECTURE]), "twice"),
    "string-1GiB": (claims(STRING, struct.pack("<Q", 2**30)), "a string of 1073741824 bytes"),
    "string-2^64": (claims(STRING, struct.pack("<Q", 2**64 - 1)), "at most 1048576"),
    "string-cut-off": (claims(STRING, struct.pack("<Q", 100) + b"x"), "truncated"),
    "unknown-value-type": (claims(77, bytes(8)), "unknown type 77"),
    "array-2^60": (claims(ARRAY, array(U32, 2**60, b"")), "1152921504606846976 items"),
    "array-of-strings-2^60": (claims(ARRAY, array(STRING, 2**60, b"")), "1152921504606846976 items"),
    "array-cut-off": (claims(ARRAY, array(U64, 1_000_000, bytes(8))), "truncated"),
    "array-in-array": (claims(ARRAY, array(ARRAY, 1, array(U32, 0, b""))), "holds arrays"),
    "array-of-unknown-type": (claims(ARRAY, array(50, 1, bytes(8))), "unknown type 50"),
    "arrays-too-many-together": (
        gguf_file([key(f"k{n}", ARRAY, array(0, 900_000, bytes(900_000))) for n in range(3)]),
        "has 900000 items",
    ),
    "header-above-limit": (
        gguf_file([key(f"k{n}", STRING, text(bytes(1_000_000))) for n in range(MAX_HEADER_BYTES // 1_000_000 + 6)]),
        "longer than",
    ),
    "alignment-0": (gguf_file([key("general.alignment", U32, bytes(4))]), "an alignment of 0"),
    "alignment-1": (gguf_file([key("general.alignment", U32, struct.pack("<I", 1))]), "an alignment of 1"),
    "alignment-33": (gguf_file([key("general.alignment", U32, struct.pack("<I", 33))]), "an alignment of 33"),
    "alignment-2^30": (gguf_file([key("general.alignment", U32, struct.pack("<I", 2**30))]), "power of two"),
    "alignment-as-text": (gguf_file([key("general.alignment", STRING, text("32"))]), "not a number"),
    "tensor-name-1GiB": (gguf_file(counts=(1, 0)) + struct.pack("<Q", 2**30), "a tensor name of"),
    "tensor-without-name": (gguf_file([], [tensor("", [1], 0)], bytes(4)), "no name"),
    "tensor-twice": (gguf_file([], [tensor("a", [1], 0), tensor("a", [1], 32)], bytes(36)), "twice"),
    "no-dimensions": (gguf_file([], [tensor("a", [], 0)], bytes(4)), "0 dimensions"),
    "five-dimensions": (gguf_file([], [tensor("a", [1] * 5, 0)], bytes(4)), "5 dimensions"),
    "dimensions-2^32": (
        gguf_file(counts=(1, 0)) + text("a") + struct.pack("<I", 2**32 - 1) + bytes(64),
        "4294967295 dimensions",
    ),
    "product-wraps": (gguf_file([], [tensor("a", [2**32, 2**32], 0)], bytes(4)), "beyond any file"),
    "product-wraps-to-fit": (gguf_file([], [tensor("a", [2**62, 4, 1], 0)], bytes(4)), "beyond any file"),
    "zero-side": (gguf_file([], [tensor("a", [0, 2**40], 0)], bytes(4)), "multiply to nothing"),
    "side-2^64": (gguf_file([], [tensor("a", [2**64 - 1], 0)], bytes(4)), "beyond any file"),
    "unknown-tensor-type": (gguf_file([], [tensor("a", [1], 0, 4)], bytes(4)), "unknown type 4"),
    "half-a-block": (gguf_file([], [tensor("a", [31], 0, Q4_0)], bytes(18)), "blocks of 32"),
    "offset-not-aligned": (gguf_file([], [tensor("a", [1], 7)], bytes(40)), "not a multiple of 32"),
    "offset-2^63": (gguf_file([], [tensor("a", [1], 2**63)], bytes(4)), "a gap"),
    "overlap": (gguf_file([], [tensor("a", [16], 0), tensor("b", [16], 32)], bytes(96)), "overlaps another"),
    "same-range-twice": (gguf_file([], [tensor("a", [8], 0), tensor("b", [8], 0)], bytes(32)), "overlaps another"),
    "gap": (gguf_file([], [tensor("a", [1], 0), tensor("b", [1], 64)], bytes(68)), "a gap"),
    "body-cut-off": (GOOD[:-1], "its tensors need 82 bytes, the file has 81"),
    "body-missing": (gguf_file([], [tensor("a", [1024], 0)]), "its tensors need 4096 bytes, the file has 0"),
    "body-too-long": (GOOD + bytes(15), "the file has 97"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_lying_or_broken_header_is_refused_and_named(name: str, tmp_path: Path):
    content, reason = BAD[name]
    path = tmp_path / f"{name}.gguf"
    path.write_bytes(content)
    began = time.monotonic()

    with pytest.raises(CheckpointRefused, match=reason) as told:
        read_gguf_header(path)

    assert path.name in str(told.value)
    assert time.monotonic() - began < 2.0


@pytest.mark.parametrize("name", ["string-1GiB", "array-2^60", "array-of-strings-2^60", "tensors-2^63", "header-above-limit"])
def test_what_a_header_claims_is_never_allocated(name: str, tmp_path: Path):
    path = tmp_path / "claims.gguf"
    path.write_bytes(BAD[name][0])
    tracemalloc.start()

    with suppress(CheckpointRefused):
        read_gguf_header(path)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak_bytes < 8 * 1024 * 1024


def test_weights_are_not_read(tmp_path: Path):
    path = tmp_path / "sparse.gguf"
    path.write_bytes(gguf_file([], [tensor("a", [2**20, 2**14], 0)]))
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + 2**36)
    began = time.monotonic()

    assert read_gguf_header(path).tensors["a"].size_bytes == 2**36
    assert time.monotonic() - began < 1.0


CHANGES: list[Callable[[bytes, int, int], bytes]] = [
    lambda content, place, value: content[:place],
    lambda content, place, value: content[:place] + bytes([value]) + content[place + 1 :],
    lambda content, place, value: content[:place] + bytes([value]) + content[place:],
    lambda content, place, value: content[:place] + content[place + 1 :],
    lambda content, place, value: content[:place] + b"\xff" * 8 + content[place + 8 :],
]


@given(st.integers(0, len(GOOD)), st.integers(0, 255), st.sampled_from(CHANGES))
def test_any_change_of_a_file_is_read_or_refused_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int, change: Any
):
    path = tmp_path_factory.getbasetemp() / "changed.gguf"
    path.write_bytes(change(GOOD, place, value))

    with suppress(CheckpointRefused):
        header = read_gguf_header(path)
        assert all(t.end_bytes <= path.stat().st_size for t in header.tensors.values())


@given(st.binary(max_size=200))
def test_any_bytes_after_the_magic_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, rest: bytes):
    path = tmp_path_factory.getbasetemp() / "garbage.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + rest)

    with suppress(CheckpointRefused):
        read_gguf_header(path)
