"""Pictures on S3 while those who store them are killed, and the store cannot be reached for a while.

TEST_S3_ASSETS: how many pictures; 10000 takes some minutes.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from common.catalog import Catalog, RunRecord, RunStatus, open_asset_store
from common.ports import hold_port
from tests.common.catalog.s3_writer import picture

COUNT = int(os.environ.get("TEST_S3_ASSETS", "150"))
KILLS = 10 if COUNT > 1000 else 3
OUTAGE_S = 0.3
WRITER = str(Path(__file__).with_name("s3_writer.py"))


class Way:
    """The way to the store, which can be cut."""

    def __init__(self, host: str, port: int) -> None:
        self._to = host, port
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self.port = hold_port()

    async def mend(self) -> None:
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", self.port)

    async def cut(self) -> None:
        """New connections are refused and those there are reset."""
        assert self._server is not None
        self._server.close()
        for each in list(self._open):
            each.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back, there = await asyncio.open_connection(*self._to)
        self._open |= {writer, there}

        async def along(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with suppress(ConnectionError):
                while content := await source.read(65536):
                    target.write(content)
                    await target.drain()
            target.close()

        await asyncio.gather(along(reader, there), along(back, writer))
        self._open -= {writer, there}


@pytest.fixture
async def way(s3_url: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Way]:
    parts = urlsplit(s3_endpoint)
    made = Way(parts.hostname or "", parts.port or 0)
    await made.mend()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{made.port}")
    yield made
    await made.cut()


@asynccontextmanager
async def writing(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    writer = await asyncio.create_subprocess_exec(
        sys.executable, WRITER, *arguments, env=environment, stdout=asyncio.subprocess.PIPE
    )
    try:
        yield writer
    finally:
        with suppress(ProcessLookupError):
            writer.kill()
        await writer.wait()


@pytest.mark.timeout(60 + COUNT // 2)
async def test_nothing_is_lost_or_doubled_while_writers_are_killed_and_the_way_is_cut(catalog_url: str, s3_url: str, way: Way):
    told: set[int] = set()
    for kill in range(KILLS + 1):
        async with writing(catalog_url, s3_url, "0", str(COUNT)) as writer:
            assert writer.stdout is not None
            until = COUNT * (kill + 1) // (KILLS + 1) if kill < KILLS else COUNT
            while len(told) < until and (line := await writer.stdout.readline()):
                told.add(int(line))
                if len(told) == until - 10 and kill % 2 == 0:
                    await way.cut()
                    await asyncio.sleep(OUTAGE_S)
                    await way.mend()
            if kill == KILLS:
                assert await writer.wait() == 0

    catalog, store = await Catalog.open(catalog_url), open_asset_store(s3_url)
    runs = {run.id: run async for run in _all(catalog)}
    await catalog.close()
    assert told == set(range(COUNT)) == {int(run_id.removeprefix("run_")) for run_id in runs}
    assert {(run.status, len(run.images)) for run in runs.values()} == {(RunStatus.SUCCEEDED, 1)}
    for number in range(COUNT):
        assert await store.get(runs[f"run_{number:05}"].images[0].sha256) == picture(number)
    stored = [file.sha256 async for file in store.iterate()]
    assert len(stored) == len(set(stored)) == len({picture(number) for number in range(COUNT)})


async def _all(catalog: Catalog) -> AsyncIterator[RunRecord]:
    after = None
    while page := await catalog.runs.list(limit=500, after=after):
        for run in page:
            yield run
        after = page[-1].id
