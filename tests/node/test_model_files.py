"""`aquatint models`: what lies on this machine, its hashes, and what is added or taken away."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from common.cli import build_cli
from node.hashes import Hashes, autov2


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without models."""
    monkeypatch.setenv("AQUATINT_HOME", str(tmp_path))
    monkeypatch.delenv("AQUATINT__NODE__MODELS_DIRS", raising=False)
    (tmp_path / "models").mkdir()
    return tmp_path


def models(*arguments: str) -> Result:
    """`aquatint models ARGUMENTS`."""
    return CliRunner().invoke(build_cli(), ["models", *arguments], env={"COLUMNS": "200", "TERM": "dumb"})


def shown(*arguments: str) -> list[dict[str, Any]]:
    result = models(*arguments, "--json")
    assert result.exit_code == 0, result.output
    rows: list[dict[str, Any]] = json.loads(result.stdout)
    return rows


def unet(folder: Path) -> Path:
    return folder / "unet" / "diffusion_pytorch_model.safetensors"


def test_a_hash_is_read_once_until_the_file_changes(tmp_path: Path):
    file, hashes = tmp_path / "file", Hashes(tmp_path / "hashes.json")
    file.write_bytes(b"one")
    read: list[int] = []

    first = [hashes.of(file, read.append) for _ in range(2)]
    file.write_bytes(b"three")
    second = hashes.of(file, read.append)

    assert first == [hashlib.sha256(b"one").hexdigest()] * 2
    assert second == hashlib.sha256(b"three").hexdigest()
    assert read == [3, 5]
    assert autov2(second) == second[:10].upper()


def test_a_broken_memory_of_hashes_costs_time_only(tmp_path: Path):
    file = tmp_path / "file"
    file.write_bytes(b"one")
    (tmp_path / "hashes.json").write_text("{half")

    assert Hashes(tmp_path / "hashes.json").of(file) == hashlib.sha256(b"one").hexdigest()


def test_a_checkpoint_is_added_scanned_with_its_hashes_and_removed(home: Path, tiny: Path):
    added = models("add", str(tiny / "sd15"))
    broken = home / "models" / "broken.safetensors"
    broken.write_bytes(b"\x80\x02 a pickle")

    rows = {row["name"]: row for row in shown("scan", "--hash")}

    assert added.exit_code == 0, added.output
    assert set(rows) == {"sd15", None}
    path = home / "models" / "sd15"
    assert rows["sd15"]["sha256"][str(unet(path))] == hashlib.sha256(unet(path).read_bytes()).hexdigest()
    assert "pickle" in rows[None]["refused"]
    assert models("rm", "sd15", "--yes").exit_code == 0
    assert not path.exists()
    assert models("rm", "sd15", "--yes").exit_code == 2


def test_what_a_node_would_refuse_is_not_added(home: Path, tmp_path: Path):
    folder = tmp_path / "evil"
    folder.mkdir()
    (folder / "model_index.json").write_text('{"_class_name": "EvilPipeline"}')

    refused = models("add", str(folder))

    assert refused.exit_code == 1
    assert "EvilPipeline" in refused.output
    assert list((home / "models").iterdir()) == []


def test_a_file_whose_bytes_changed_behind_its_back_is_found(home: Path, tiny: Path):
    shutil.copytree(tiny / "sd15", home / "models" / "sd15")
    first = models("verify", "--json")
    path = unet(home / "models" / "sd15")
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    again = models("verify", "--json")

    assert first.exit_code == 0
    assert {row["verdict"] for row in json.loads(first.stdout)} == {"first read"}
    assert again.exit_code == 1
    verdicts = {row["file"]: row["verdict"] for row in json.loads(again.stdout)}
    assert verdicts.pop(str(path)) == "CHANGED"
    assert set(verdicts.values()) == {"as before"}


def test_a_source_that_is_none_is_told_with_what_one_looks_like(home: Path):
    refused = models("pull", "not a source")

    assert refused.exit_code == 2
    assert "ORGANISATION/NAME" in refused.output


def test_what_lies_in_the_cache_of_hugging_face_is_not_removed(home: Path, tiny: Path):
    snapshot = home / "models" / "models--a--b" / "snapshots" / ("a" * 40)
    shutil.copytree(tiny / "z-image", snapshot)
    (home / "models" / "models--a--b" / "blobs").mkdir()

    result = models("rm", "a/b", "--yes")

    assert result.exit_code == 2
    assert "Hugging Face's cache" in result.output
    assert (snapshot / "model_index.json").exists()
