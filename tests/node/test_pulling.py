"""Checkpoints from Hugging Face and CivitAI: whole, with the stated sha256, checked, resumed, or not there at all."""

import asyncio
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from node.checkpoints import scan
from node.pulling import INCOMING, CivitaiSource, HubSource, PullFailed, parse_source, pull_civitai, pull_hub
from tests.fakes.model_sites import COMMIT, Sites, build_sites
from tests.serving import served

REPO = HubSource("org/tiny-sd", None)


@pytest.fixture
def sites() -> Sites:
    return Sites()


@pytest.fixture
async def url(sites: Sites) -> AsyncIterator[str]:
    async with served(build_sites(sites)) as address:
        yield address


def stored(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def hub(url: str, folder: Path, **more: Any) -> Path:
    return (await asyncio.to_thread(pull_hub, REPO, folder, endpoint=url, **more)).path


async def civitai(url: str, folder: Path, number: int = 34, **more: Any) -> Path:
    return (await asyncio.to_thread(pull_civitai, CivitaiSource(number), folder, url=url, **more)).path


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("org/name", HubSource("org/name", None)),
        ("hf:org/name.v1@main", HubSource("org/name.v1", "main")),
        ("org/name@refs/pr/1", HubSource("org/name", "refs/pr/1")),
        ("civitai:34", CivitaiSource(34)),
        ("urn:air:sdxl:checkpoint:civitai:12@34", CivitaiSource(34)),
    ],
)
def test_sources_are_read_as_people_write_them(text: str, source: HubSource | CivitaiSource):
    assert parse_source(text) == source


@pytest.mark.parametrize(
    "text", ["", "name", "a/b/c", "../b", "a/..", "https://x.test/a/b", "civitai:x", "urn:air:sdxl:lora:x:1@2"]
)
def test_other_texts_are_no_source(text: str):
    with pytest.raises(ValueError, match="neither"):
        parse_source(text)


async def test_a_repository_is_pulled_without_what_could_hold_code_and_is_then_found(
    sites: Sites, url: str, tiny: Path, tmp_path: Path
):
    files = stored(tiny / "sd15")
    sites.repos["org/tiny-sd"] = files | {"evil.py": b"print()", "unet/weights.bin": b"\x80\x02", "README.md": b"#"}

    path = await hub(url, tmp_path)

    assert path == tmp_path / "org/tiny-sd"
    assert stored(path) == files
    assert [checkpoint.name for checkpoint in scan([tmp_path]).checkpoints] == ["org/tiny-sd"]
    assert all(COMMIT in asked for asked in sites.asked if "/resolve/" in asked)
    with pytest.raises(PullFailed, match="already there"):
        await hub(url, tmp_path)


async def test_a_repository_that_is_not_there_or_not_ours_to_read_is_told(sites: Sites, url: str, tmp_path: Path):
    with pytest.raises(PullFailed, match="org/tiny-sd"):
        await hub(url, tmp_path)
    sites.token = "secret"
    with pytest.raises(PullFailed, match="401"):
        await hub(url, tmp_path, token="wrong")


async def test_files_of_another_sha256_than_stated_get_no_place(sites: Sites, url: str, tiny: Path, tmp_path: Path):
    sites.repos["org/tiny-sd"] = stored(tiny / "sd15")
    sites.lies = True

    with pytest.raises(PullFailed, match="sha256"):
        await hub(url, tmp_path)

    assert scan([tmp_path]).checkpoints == ()
    sites.lies = False
    assert stored(await hub(url, tmp_path)) == stored(tiny / "sd15")


async def test_a_repository_of_another_pipeline_is_refused_by_name(sites: Sites, url: str, tiny: Path, tmp_path: Path):
    index = b'{"_class_name": "SomethingElsePipeline", "_diffusers_version": "0.42.1"}'
    sites.repos["org/tiny-sd"] = stored(tiny / "sd15") | {"model_index.json": index}

    with pytest.raises(PullFailed, match="SomethingElsePipeline"):
        await hub(url, tmp_path)

    assert not (tmp_path / "org").exists()


def weights(tiny: Path) -> bytes:
    return (tiny / "sd15/unet/diffusion_pytorch_model.safetensors").read_bytes()


async def test_a_version_of_civitai_goes_to_the_folder_of_its_type(sites: Sites, url: str, tiny: Path, tmp_path: Path):
    sites.put_version(34, "../My Model ☆.safetensors", weights(tiny))
    sites.put_version(
        35, "hat.safetensors", weights(tiny), "LORA", trainedWords=['a "hat"'], air="urn:air:sd1:lora:civitai:9@35"
    )

    checkpoint, lora = await civitai(url, tmp_path), await civitai(url, tmp_path, 35)

    assert checkpoint == tmp_path / "checkpoints/_My_Model_.safetensors"
    assert checkpoint.read_bytes() == weights(tiny)
    assert lora == tmp_path / "loras/hat.safetensors"
    said = tomllib.loads(lora.with_suffix(".toml").read_text())
    assert said == {"trigger_words": ['a "hat"'], "air": "urn:air:sd1:lora:civitai:9@35"}


async def test_a_download_that_broke_off_goes_on_where_it_stopped(sites: Sites, url: str, tiny: Path, tmp_path: Path):
    sites.put_version(34, "m.safetensors", weights(tiny))
    sites.breaks_after_bytes = 1000

    with pytest.raises(PullFailed, match="broke off"):
        await civitai(url, tmp_path)
    assert (tmp_path / INCOMING / "civitai-34/m.safetensors").stat().st_size == 1000
    path = await civitai(url, tmp_path)

    assert path.read_bytes() == weights(tiny)
    assert sites.asked[-1] == "GET /storage/34 bytes=1000-"


@pytest.mark.parametrize(
    ("kind", "name", "content", "words"),
    [
        ("Checkpoint", "m.ckpt", b"\x80\x02", "no safetensors file"),
        ("TextualInversion", "m.safetensors", b"", "type 'TextualInversion'"),
        ("Checkpoint", "m.safetensors", b"\x80\x02 a pickle in disguise", "not served here"),
    ],
)
async def test_what_is_not_served_here_gets_no_place(
    sites: Sites, url: str, tmp_path: Path, kind: str, name: str, content: bytes, words: str
):
    sites.put_version(34, name, content, kind)

    with pytest.raises(PullFailed, match=words):
        await civitai(url, tmp_path)

    assert all(name.startswith(INCOMING) for name in stored(tmp_path))


async def test_a_wrong_sha256_an_unknown_version_and_a_missing_token_are_told(
    sites: Sites, url: str, tiny: Path, tmp_path: Path
):
    sites.put_version(34, "m.safetensors", weights(tiny))
    with pytest.raises(PullFailed, match="404"):
        await civitai(url, tmp_path, 99)
    sites.lies = True
    with pytest.raises(PullFailed, match="sha256"):
        await civitai(url, tmp_path)
    sites.token = "secret"
    with pytest.raises(PullFailed, match="401"):
        await civitai(url, tmp_path)
