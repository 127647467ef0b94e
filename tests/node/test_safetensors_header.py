"""Headers that lie, and files that are not what they are called, are refused before any library opens them."""

import json
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.safetensors_header import MAX_HEADER_BYTES, CheckpointRefused, read_header

PICKLE = b"\x80\x04\x95\x1d\x00\x00\x00\x00\x00\x00\x00\x8c\x08builtins\x94\x8c\x05print\x94\x93\x94."


def safetensors_file(header: Any, body: bytes = b"") -> bytes:
    """A file with this header: JSON text, or a value to write as JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def tensor(begin: int, end: int, shape: list[Any] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


GOOD = {"__metadata__": {"format": "pt"}, "a": tensor(0, 8), "b": tensor(8, 24, [2, 2])}


def test_a_sound_file_is_read(tmp_path: Path):
    path = tmp_path / "sound.safetensors"
    path.write_bytes(safetensors_file(GOOD, bytes(24)))

    tensors = read_header(path)

    assert {name: (t.shape, t.size_bytes) for name, t in tensors.items()} == {"a": ((2,), 8), "b": ((2, 2), 16)}


def test_scalars_and_empty_tensors_are_sound(tmp_path: Path):
    path = tmp_path / "sound.safetensors"
    path.write_bytes(safetensors_file({"one": tensor(0, 4, []), "none": tensor(4, 4, [0, 7])}, bytes(4)))

    assert {name: t.elements for name, t in read_header(path).items()} == {"one": 1, "none": 0}


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "truncated"),
    "seven-bytes": (b"\x01\x02\x03\x04\x05\x06\x07", "truncated"),
    "only-a-length": (struct.pack("<Q", 40), "truncated"),
    "header-beyond-file": (struct.pack("<Q", 4000) + b"{}", "truncated"),
    "header-of-exabytes": (struct.pack("<Q", 2**63) + b"{}", "at most"),
    "header-above-limit": (struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}", "at most"),
    "body-cut-off": (safetensors_file(GOOD, bytes(20)), "its tensors need 24 bytes, the file has 20"),
    "body-too-long": (safetensors_file(GOOD, bytes(30)), "the file has 30"),
    "not-json": (safetensors_file(b'{"a": }'), "not JSON"),
    "array": (safetensors_file(b"[1, 2, 3]"), "does not begin with a JSON object"),
    "deep": (safetensors_file(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "not JSON"),
    "huge-number": (safetensors_file(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,4]}}'), "not JSON"),
    "same-key-twice": (safetensors_file(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{}}'), "twice"),
    "same-inner-key-twice": (
        safetensors_file(b'{"a":{"dtype":"F32","shape":[1],"shape":[9],"data_offsets":[0,4]}}', bytes(4)),
        "twice",
    ),
    "metadata-not-text": (safetensors_file({"__metadata__": {"x": {}}}), "metadata"),
    "unknown-dtype": (safetensors_file({"a": tensor(0, 4, [1], "F31")}, bytes(4)), "unknown dtype"),
    "dtype-not-text": (safetensors_file({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}, bytes(4)), "dtype"),
    "missing-field": (safetensors_file({"a": {"dtype": "F32", "shape": [1]}}), "exactly"),
    "extra-field": (safetensors_file({"a": tensor(0, 4) | {"code": "x"}}, bytes(4)), "exactly"),
    "not-a-table": (safetensors_file({"a": 7}), "exactly"),
    "negative-side": (safetensors_file({"a": tensor(0, 4, [-1])}, bytes(4)), "whole numbers"),
    "fractional-side": (safetensors_file({"a": tensor(0, 4, [1.0])}, bytes(4)), "whole numbers"),
    "true-as-side": (safetensors_file({"a": tensor(0, 4, [True])}, bytes(4)), "whole numbers"),
    "nine-dimensions": (safetensors_file({"a": tensor(0, 4, [1] * 9)}, bytes(4)), "at most 8"),
    "product-wraps": (safetensors_file({"a": tensor(0, 4, [2**32, 2**32, 1])}, bytes(4)), "beyond any file"),
    "product-wraps-to-fit": (safetensors_file({"a": tensor(0, 0, [2**62, 4])}), "beyond any file"),
    "zero-hides-huge": (safetensors_file({"a": tensor(0, 0, [0, 2**60])}), "beyond any file"),
    "bytes-not-shape": (safetensors_file({"a": tensor(0, 8, [3])}, bytes(8)), "12 bytes by its shape, 8 by its offsets"),
    "offsets-backwards": (safetensors_file({"a": tensor(4, 0, [1])}, bytes(4)), "rising"),
    "three-offsets": (
        safetensors_file({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, bytes(4)),
        "rising",
    ),
    "outside-the-file": (safetensors_file({"a": tensor(0, 4), "b": tensor(4, 1000)}, bytes(8)), "the file has 8"),
    "overlap": (safetensors_file({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12)), "overlaps"),
    "same-range-twice": (safetensors_file({"a": tensor(0, 8), "b": tensor(0, 8)}, bytes(8)), "overlaps"),
    "gap": (safetensors_file({"a": tensor(0, 4), "b": tensor(8, 12)}, bytes(12)), "gap"),
    "empty-name": (safetensors_file({"": tensor(0, 4)}, bytes(4)), "names have"),
    "long-name": (safetensors_file({"n" * 600: tensor(0, 4)}, bytes(4)), "names have"),
    "pickle": (PICKLE, "a pickle"),
    "old-pickle": (b"\x80\x02}q\x00(X\x05\x00\x00\x00", "a pickle"),
    "zip": (b"PK\x03\x04" + bytes(60), "a zip archive"),
    "gguf": (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "a GGUF file"),
    "numpy": (b"\x93NUMPY\x01\x00" + bytes(40), "a NumPy file"),
    "text": (b"version https://git-lfs.github.com/spec/v1\n", "does not begin"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_by_name_and_reason(name: str, tmp_path: Path):
    content, reason = BAD[name]
    path = tmp_path / f"{name}.safetensors"
    path.write_bytes(content)

    with pytest.raises(CheckpointRefused, match=reason) as refused:
        read_header(path)

    assert str(path) in str(refused.value)


def test_more_tensors_than_any_model_has_are_refused(tmp_path: Path):
    path = tmp_path / "many.safetensors"
    entries = ",".join(f'"{n}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for n in range(50_002))
    path.write_bytes(safetensors_file(f"{{{entries}}}".encode()))

    with pytest.raises(CheckpointRefused, match="more than 50000 tensors"):
        read_header(path)


@given(st.binary(max_size=200))
def test_no_bytes_at_all_make_the_reader_fail_in_another_way(tmp_path_factory: pytest.TempPathFactory, content: bytes):
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    path.write_bytes(content)

    _only_refusals(lambda: read_header(path))


@given(st.binary(max_size=120))
def test_no_header_text_makes_the_reader_fail_in_another_way(tmp_path_factory: pytest.TempPathFactory, text: bytes):
    path = tmp_path_factory.getbasetemp() / "any_header.safetensors"
    path.write_bytes(safetensors_file(b"{" + text))

    _only_refusals(lambda: read_header(path))


def _only_refusals(read: Callable[[], object]) -> None:
    with suppress(CheckpointRefused):
        read()
