"""Nodes, models, aliases and the values processes share."""

import asyncio
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from common.catalog import Catalog, ModelFile, load_or_create_secret_key
from common.errors import AquatintError, Conflict, InvalidRequest, NotFound


async def test_a_node_is_found_by_name_and_by_id_and_its_token_stays_out_of_logs(catalog: Catalog):
    node = await catalog.nodes.add(name="left", url="http://left", token="very-secret-token")

    assert await catalog.nodes.get("left") == node == await catalog.nodes.get(node.id)
    assert (node.token, node.state, node.max_concurrency) == ("very-secret-token", "pending", 1)
    assert "very-secret-token" not in repr(node)


@pytest.mark.parametrize(("name", "url"), [("left", "http://other"), ("other", "http://left")])
async def test_names_and_addresses_of_nodes_are_unique(name: str, url: str, catalog: Catalog):
    await catalog.nodes.add(name="left", url="http://left", token=None)

    with pytest.raises(Conflict):
        await catalog.nodes.add(name=name, url=url, token=None)
    right = await catalog.nodes.add(name="right", url="http://right", token=None)
    with pytest.raises(Conflict):
        await catalog.nodes.update(right.id, name="left")
    assert [node.name for node in await catalog.nodes.list()] == ["left", "right"]


async def test_a_nodes_state_is_written_down_with_its_reason(catalog: Catalog):
    node = await catalog.nodes.add(name="left", url="http://left", token=None)

    await catalog.nodes.set_state(node.id, "error", error="timeout")
    broken = await catalog.nodes.get("left")
    await catalog.nodes.set_state(node.id, "online", seen=True)
    well = await catalog.nodes.get("left")

    assert (broken.state, broken.last_error, broken.last_seen_at) == ("error", "timeout", None)
    assert (well.state, well.last_error) == ("online", None)
    assert well.last_seen_at is not None
    with pytest.raises(InvalidRequest):
        await catalog.nodes.set_state(node.id, "asleep")


async def test_a_routers_view_of_a_node_does_not_overrule_an_operator_who_drains_it(catalog: Catalog):
    node = await catalog.nodes.add(name="gpu1", url="http://gpu1:8001", token=None)
    await catalog.nodes.set_state(node.id, "draining")

    await catalog.nodes.note_health(node.id, "online", seen=True)

    assert (await catalog.nodes.get(node.id)).state == "draining"
    await catalog.nodes.set_state(node.id, "pending")
    await catalog.nodes.note_health(node.id, "online", seen=True)
    assert (await catalog.nodes.get(node.id)).state == "online"


async def test_a_node_changes_only_in_what_is_given(catalog: Catalog):
    node = await catalog.nodes.add(name="left", url="http://left", token="first")

    moved = await catalog.nodes.update("left", url="http://elsewhere", max_concurrency=2)
    open_node = await catalog.nodes.update("left", token=None)

    assert (moved.id, moved.url, moved.token, moved.max_concurrency) == (node.id, "http://elsewhere", "first", 2)
    assert (open_node.url, open_node.token) == ("http://elsewhere", None)
    with pytest.raises(InvalidRequest):
        await catalog.nodes.update("left", max_concurrency=0)


async def test_a_removed_node_is_gone(catalog: Catalog):
    await catalog.nodes.add(name="left", url="http://left", token=None)

    await catalog.nodes.remove("left")

    assert await catalog.nodes.list() == []
    for asking in (
        catalog.nodes.get("left"),
        catalog.nodes.remove("left"),
        catalog.nodes.set_state("left", "online"),
        catalog.nodes.update("left", url="http://x"),
    ):
        with pytest.raises(NotFound):
            await asking


async def test_without_the_right_key_tokens_are_unreadable_and_nodes_still_listed(catalog: Catalog, catalog_url: str):
    await catalog.nodes.add(name="left", url="http://left", token="very-secret-token")

    for key in (None, b"b3RoZXIgb3RoZXIgb3RoZXIgb3RoZXIgb3RoZXIhISE="):
        other = await Catalog.open(catalog_url, secret_key=key)
        assert [(node.name, node.token) for node in await other.nodes.list()] == [("left", None)]
        if key is None:
            with pytest.raises(InvalidRequest):
                await other.nodes.add(name="right", url="http://right", token="x")
        await other.close()


async def test_recording_a_model_again_replaces_what_is_known_of_it(catalog: Catalog):
    old = ModelFile(path="a.safetensors", format="safetensors", size_bytes=7_000_000_000, sha256="ab" * 32, autov2="ab" * 5)
    new = ModelFile(path="a.gguf", format="gguf", size_bytes=3)
    usual = {"name": "sdxl-turbo", "profile": "sdxl-turbo", "licence": None, "capabilities": {"edit": True}}

    first = await catalog.models.upsert(**usual, family="sdxl", files=[old])
    second = await catalog.models.upsert(**usual, family="sdxl-2", files=[old, new])
    third = await catalog.models.upsert(**usual, family="sdxl-2", files=[new])

    assert first.files == (old,)
    assert set(second.files) == {old, new}
    assert (third.id, third.family, third.files, third.capabilities) == (first.id, "sdxl-2", (new,), {"edit": True})
    assert await catalog.models.list() == [third]
    assert await catalog.models.get("sdxl-turbo") == third
    with pytest.raises(NotFound):
        await catalog.models.get("sdxl")


async def test_nodes_that_record_one_model_at_once_make_one(catalog: Catalog):
    async def upsert(index: int) -> str:
        file = ModelFile(path=f"{index}.gguf", format="gguf", size_bytes=index)
        record = await catalog.models.upsert(name="m", family="sd15", profile=None, licence=None, capabilities={}, files=[file])
        return record.id

    assert len(set(await asyncio.gather(*(upsert(index) for index in range(8))))) == 1
    assert len((await catalog.models.get("m")).files) == 1


async def test_an_alias_leads_to_a_model_and_can_be_moved_and_removed(catalog: Catalog):
    await catalog.models.set_alias("dall-e-3", "sdxl-turbo")
    await catalog.models.set_alias("dall-e-3", "z-image-turbo")

    assert await catalog.models.aliases() == {"dall-e-3": "z-image-turbo"}
    for alias, model in (("dall-e-2", "dall-e-3"), ("same", "same")):
        with pytest.raises(InvalidRequest):
            await catalog.models.set_alias(alias, model)
    await catalog.models.remove_alias("dall-e-3")
    assert await catalog.models.aliases() == {}
    with pytest.raises(NotFound):
        await catalog.models.remove_alias("dall-e-3")


async def test_processes_that_ask_for_a_secret_at_once_get_the_same(catalog: Catalog, catalog_url: str):
    other = await Catalog.open(catalog_url)
    values = await asyncio.gather(
        *((catalog if i % 2 else other).secrets.get_or_create("signing", lambda i=i: f"made by {i}") for i in range(8))
    )
    await other.close()

    assert len(set(values)) == 1
    assert await catalog.secrets.get_or_create("signing", lambda: "made late") == values[0]


async def test_the_key_file_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path, child_environment: dict[str, str]):
    path = tmp_path / "home" / "secret.key"
    code = (
        "import os, pathlib, sys; from common.catalog import load_or_create_secret_key; os.fork(); os.fork();"
        "os.write(1, load_or_create_secret_key(pathlib.Path(sys.argv[1])) + b'\\n')"
    )
    command = [sys.executable, "-c", code, str(path)]
    # Two forks, one after the other, are four processes; the pipe ends with the last of them.
    said = await asyncio.to_thread(subprocess.check_output, command, env=child_environment, text=True, timeout=60)

    assert said.split() == [load_or_create_secret_key(path).decode()] * 4
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["secret.key"]


def test_a_key_file_that_holds_no_key_is_refused(tmp_path: Path):
    (tmp_path / "secret.key").write_text("not a key")

    with pytest.raises(AquatintError, match="not a key"):
        load_or_create_secret_key(tmp_path / "secret.key")
