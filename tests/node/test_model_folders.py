"""Models folders of other programs, read as they lie."""

import os
import shutil
from pathlib import Path

import pytest

from node.checkpoints import inspect, scan

HASHES = ("a" * 40, "b" * 40)


def cached(tiny: Path, hub: Path, *, repository: str, snapshot: str) -> Path:
    """A checkpoint as Hugging Face's library stores it: every file a link to a blob."""
    folder = hub / repository
    for file in (tiny / "z-image").rglob("*"):
        if file.is_file():
            blob = folder / "blobs" / f"{len(list((folder / 'blobs').glob('*'))):040x}"
            blob.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, blob)
            link = folder / "snapshots" / snapshot / file.relative_to(tiny / "z-image")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
    return folder


def names(*roots: Path) -> list[str]:
    return sorted(each.name for each in scan(roots).checkpoints)


def test_the_cache_of_hugging_face_is_read_by_its_own_names(tiny: Path, tmp_path: Path):
    cached(tiny, tmp_path, repository="models--Tongyi-MAI--Z-Image", snapshot=HASHES[0])
    cached(tiny, tmp_path / "hub", repository="models--alone", snapshot=HASHES[0])
    found = scan([tmp_path])

    assert sorted(each.name for each in found.checkpoints) == ["Tongyi-MAI/Z-Image", "alone"]
    assert not found.refused
    first = found.checkpoints[0]
    assert inspect(first.path, root=first.root) == first


def test_of_several_snapshots_main_is_taken_and_else_the_newest(tiny: Path, tmp_path: Path):
    folder = cached(tiny, tmp_path, repository="models--a--b", snapshot=HASHES[0])
    cached(tiny, tmp_path, repository="models--a--b", snapshot=HASHES[1])
    for age, name in enumerate(HASHES):
        os.utime(folder / "snapshots" / name, (1000 - age, 1000 - age))

    assert [each.path.name for each in scan([tmp_path]).checkpoints] == [HASHES[0]]
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(HASHES[1] + "\n")
    assert [each.path.name for each in scan([tmp_path]).checkpoints] == [HASHES[1]]
    (folder / "refs" / "main").write_text("../../../elsewhere")
    assert [each.path.name for each in scan([tmp_path]).checkpoints] == [HASHES[0]]


def test_cached_models_of_other_kinds_are_passed_over(tiny: Path, tmp_path: Path):
    snapshot = cached(tiny, tmp_path, repository="models--meta--llama", snapshot=HASHES[0]) / "snapshots" / HASHES[0]
    (snapshot / "model_index.json").unlink()

    assert scan([tmp_path]).checkpoints == scan([tmp_path]).refused == ()


@pytest.mark.parametrize("kind", ["checkpoints", "diffusion_models", "Stable-diffusion"])
def test_folders_of_comfyui_and_a1111_are_told_apart(kind: str, tiny: Path, tmp_path: Path):
    shutil.copytree(tiny / "sd15", tmp_path / kind / "anime" / "fox")
    for other in ("loras", "VAE", "text_encoders"):
        (tmp_path / other).mkdir()
        (tmp_path / other / "part.safetensors").write_bytes(b"not looked at")
    found = scan([tmp_path])

    assert [each.name for each in found.checkpoints] == ["anime/fox"]
    assert not found.refused


def test_a_folder_of_the_same_name_elsewhere_is_looked_into(tiny: Path, tmp_path: Path):
    shutil.copytree(tiny / "sd15", tmp_path / "clip" / "fox")

    assert names(tmp_path) == ["clip/fox"]


def test_the_extra_model_paths_of_comfyui_stand_for_its_folders(tiny: Path, tmp_path: Path):
    shutil.copytree(tiny / "sd15", tmp_path / "comfy" / "models" / "checkpoints" / "one")
    shutil.copytree(tiny / "z-image", tmp_path / "comfy" / "more" / "two")
    shutil.copytree(tiny / "sdxl", tmp_path / "a1111" / "three")
    paths = tmp_path / "extra_model_paths.yaml"
    paths.write_text(
        "comfyui:\n    base_path: comfy/\n    is_default: true\n    checkpoints: models/checkpoints/\n"
        "    diffusion_models: |\n        more\n        none\n    loras: models/loras/\n"
        f"a111:\n    checkpoints: {tmp_path / 'a1111'}\n"
    )
    found = scan([paths])

    assert sorted(each.name for each in found.checkpoints) == ["one", "three", "two"]
    assert [refusal.path.name for refusal in found.refused] == ["none"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [1", "not YAML"),
        ("[1, 2]", "a table of paths"),
        ("comfyui: models", "a table of paths"),
        ("comfyui:\n    checkpoints: [models]", "'checkpoints' must be a text"),
        ("x: !!python/object/apply:os.system ['true']", "not YAML"),
        ("x: '" + "y" * 70000 + "'", "more than 65536 bytes"),
    ],
)
def test_a_file_of_paths_that_is_none_is_refused(text: str, reason: str, tmp_path: Path):
    (tmp_path / "paths.yaml").write_text(text)

    assert reason in str(scan([tmp_path / "paths.yaml"]).refused[0])


def test_links_of_the_cache_must_stay_inside_it(tiny: Path, tmp_path: Path):
    folder = cached(tiny, tmp_path / "hub", repository="models--a--b", snapshot=HASHES[0])
    index = folder / "snapshots" / HASHES[0] / "model_index.json"
    shutil.move(index.resolve(), tmp_path / "outside.json")
    index.unlink()
    index.symlink_to(tmp_path / "outside.json")

    assert "leads out of the models folder" in str(scan([tmp_path / "hub"]).refused[0])
