"""Chores of a node: done once however often they are asked for, looked at, ended."""

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from common.errors import NotFound, TooManyRequests
from common.node_api import ChoreKind, ChoreOrder, ChoreState, ChoreStatus
from node.chores import Chores
from node.chores.table import AT_ONCE
from tests.fakes.model_sites import Sites, build_sites, silent_site
from tests.serving import served

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def chores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Chores]:
    """Of a node whose models lie in `models`."""
    (tmp_path / "models").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # Whoever has built checkpoints in this process has set it for good.
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("AQUATINT_HOME", str(tmp_path))
    monkeypatch.setenv("AQUATINT__NODE__MODELS_DIRS", json.dumps([str(tmp_path / "models")]))
    opened = Chores()
    yield opened
    await opened.close()


async def ended(chores: Chores, name: str) -> ChoreStatus:
    async with asyncio.timeout(120):
        while (status := chores.status(name)).state is ChoreState.RUNNING:
            await asyncio.sleep(0.02)
    return status


async def result_of(chores: Chores, order: ChoreOrder) -> dict[str, object]:
    chores.begin(order)
    status = await ended(chores, order.name)
    assert status.state is ChoreState.SUCCEEDED, status.error
    assert status.result is not None
    return status.result


def pull(name: str = "job_1") -> ChoreOrder:
    return ChoreOrder(name=name, kind=ChoreKind.PULL, source="org/tiny-sd")


def hashes(name: str, *, verify: bool = False) -> ChoreOrder:
    return ChoreOrder(name=name, kind=ChoreKind.HASHES, verify=verify)


async def test_a_pull_brings_a_checkpoint_once_however_often_it_is_asked_for(
    chores: Chores, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sites = Sites()
    files = [path for path in (tiny / "sd15").rglob("*") if path.is_file()]
    sites.repos["org/tiny-sd"] = {path.relative_to(tiny / "sd15").as_posix(): path.read_bytes() for path in files}
    async with served(build_sites(sites)) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        first = await result_of(chores, pull())
        asked = len(sites.asked)
        again = chores.begin(pull())
        # As after the node was started anew, which knows nothing of the first.
        once_more = await result_of(chores, pull("job_2"))

    assert first == once_more == {"path": str(tmp_path / "models/org/tiny-sd"), "bytes": sum(p.stat().st_size for p in files)}
    assert again.state is ChoreState.SUCCEEDED
    assert len(sites.asked) == asked


async def test_hashes_are_read_once_and_what_changed_in_silence_is_named(chores: Chores, tiny: Path, tmp_path: Path):
    shutil.copytree(tiny / "sd15", tmp_path / "models/sd15")
    weights = sorted((tmp_path / "models").rglob("*.safetensors"))

    first = await result_of(chores, hashes("a"))
    known = await result_of(chores, hashes("b"))
    rotten, before = weights[0], weights[0].stat()
    content = bytearray(rotten.read_bytes())
    content[-1] ^= 1
    rotten.write_bytes(content)
    os.utime(rotten, ns=(before.st_atime_ns, before.st_mtime_ns))
    unnoticed = await result_of(chores, hashes("c"))
    looked = await result_of(chores, hashes("d", verify=True))

    assert first == {"files": len(weights), "read": len(weights), "changed": []}
    assert known == unnoticed == {"files": len(weights), "read": 0, "changed": []}
    assert looked == {"files": len(weights), "read": len(weights), "changed": [str(rotten)]}


async def test_a_pull_that_fails_says_why(chores: Chores, monkeypatch: pytest.MonkeyPatch):
    async with served(build_sites(Sites())) as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        chores.begin(pull())
        status = await ended(chores, "job_1")

    assert status.state is ChoreState.FAILED
    assert status.error is not None
    assert "org/tiny-sd" in status.error


async def test_a_chore_is_ended_when_it_is_told_to_and_there_are_no_more_at_once_than_may_be(
    chores: Chores, monkeypatch: pytest.MonkeyPatch
):
    async with silent_site() as (url, came):
        monkeypatch.setenv("HF_ENDPOINT", url)
        for number in range(AT_ONCE):
            chores.begin(pull(f"job_{number}"))
        with pytest.raises(TooManyRequests):
            chores.begin(pull("one_more"))
        async with asyncio.timeout(60):
            await came.wait()

        status = await chores.end("job_0")
        chores.begin(pull("one_more"))

        assert status.state is chores.begin(pull("job_0")).state is ChoreState.CANCELLED
        await chores.close()
    with pytest.raises(NotFound):
        chores.status("job_none")
