"""F29: the database or the store fails at the k-th call of one request, for every k; nothing may be half done after it.

Router and node are in one process here, so that every statement and commit of both, and what is put into the store, is
counted in one place. What the client was told must be true, and its key must lead to its pictures afterwards, made once.
"""

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError

from common.catalog import RunStatus
from common.catalog.folder_store import FolderStore
from common.catalog.records import OPEN_RUN
from common.catalog.sweeper import sweep
from common.errors import StorageFull
from tests.faults.estate import SIZE, Estate, until
from tests.router.conftest import House, MakeHouse

LEAST_CALLS = 10
"""As many a request makes at least; fewer, and this test counts in the wrong place."""


class Fails:
    """Counts calls, and has the k-th fail."""

    def __init__(self, at: int) -> None:
        self._at = at
        self.calls = 0

    def now(self) -> bool:
        """Whether this call fails."""
        self.calls += 1
        return self.calls == self._at


class Store(FolderStore):
    """The folder, whose disk is full at one call."""

    fails = Fails(0)

    async def put(self, content: bytes, *, sha256: str | None = None) -> str:
        if self.fails.now():
            raise StorageFull("The asset folder cannot be written: No space left on device.", retry_after_s=30)
        return await super().put(content, sha256=sha256)


@contextmanager
def failing(fails: Fails, store: Store) -> Iterator[None]:
    """Every database of this process, and the node's store."""

    def on_statement(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if fails.now():
            raise OperationalError(statement, {}, OSError("disk I/O error"))

    def on_commit(connection: Any) -> None:
        if fails.now():
            raise OperationalError("COMMIT", {}, OSError("disk I/O error"))

    store.fails = fails
    event.listen(Engine, "before_cursor_execute", on_statement)
    event.listen(Engine, "commit", on_commit)
    try:
        yield
    finally:
        event.remove(Engine, "before_cursor_execute", on_statement)
        event.remove(Engine, "commit", on_commit)
        store.fails = Fails(0)


async def asked(house: House, number: int) -> httpx.Response:
    body = {"prompt": f"call {number}", "seed": number, "size": str(SIZE), "model": "fake/model:1"}
    return await house.client.post("/v1/images/generations", json=body, headers={"idempotency-key": f"call-{number}"})


def is_answer(reply: httpx.Response, number: int) -> bool:
    pictures = [base64.b64decode(each["b64_json"]) for each in reply.json()["data"]]
    return len(pictures) == 1 and Estate.is_own(f"call {number}", number, pictures[0])


@pytest.mark.parametrize("catalog_url", ["sqlite"], indirect=True)
async def test_whichever_call_of_a_request_fails_it_is_told_so_and_asking_again_makes_it_once(
    make_house: MakeHouse, tmp_path: Path
):
    house = await make_house("a", orphan_after_s=1, sweep_interval_s=0.2)
    store = house.nodes["a"].assets = Store(tmp_path / "assets")
    at = calls = 0
    while calls >= at:
        at += 1
        fails = Fails(at)
        with failing(fails, store):
            reply = await asked(house, at)
        calls = fails.calls
        if reply.status_code == 200:
            assert is_answer(reply, at)
        else:
            assert reply.status_code in (502, 503, 504), (at, reply.text)

        async def answered(number: int = at) -> bool:
            again = await asked(house, number)
            assert again.status_code in (200, 409), (number, again.text)
            return again.status_code == 200 and is_answer(again, number)

        await until(answered, what=f"the pictures of a request whose call {at} failed")
    assert at > LEAST_CALLS

    async def closed() -> bool:
        return not [run for run in await house.catalog.runs.list(limit=500) if run.status in OPEN_RUN]

    await until(closed, what="every run to end")
    runs = await house.catalog.runs.list(limit=500)
    made = [run.prompt for run in runs if run.status is RunStatus.SUCCEEDED]
    assert sorted(made) == sorted({run.prompt for run in runs})
    assert all(len(run.images) == (run.status is RunStatus.SUCCEEDED) for run in runs)
    await sweep(house.catalog, store, run_timeout_s=3600, grace_s=0)
    files = {file.sha256 async for file in store.iterate()}
    assert files == {image.sha256 for run in runs for image in run.images}
