"""Work that is put off until there is more of it."""

import asyncio

import structlog
from fastapi import FastAPI

from common.later import LATER_S, Later
from common.logs import bind_only, bound
from common.web import RequestContext


async def test_what_is_put_off_is_done_in_its_order_by_itself_and_once():
    later, done = Later(), list[int]()
    ended = asyncio.Event()
    for number in range(3):
        later.put(done.append, number)
    later.put(ended.set)
    assert done == []

    async with asyncio.timeout(100 * LATER_S):
        await ended.wait()
    later.catch_up()

    assert done == [0, 1, 2]


async def test_it_is_done_with_the_ids_that_were_bound_when_it_was_put_off():
    later, found = Later(), list[object]()
    for run_id in ("run_1", "run_2"):
        bind_only(run_id=run_id)
        later.put(lambda: found.append(bound()["run_id"]))
    bind_only()

    later.catch_up()

    assert found == ["run_1", "run_2"]


async def test_one_that_fails_is_told_of_and_keeps_no_other_from_being_done():
    later, done = Later(), list[str]()
    later.put(lambda: 1 / 0)
    later.put(done.append, "the next")

    with structlog.testing.capture_logs() as lines:
        later.catch_up()

    assert done == ["the next"]
    assert [line["event"] for line in lines] == ["not_done_later"]


async def test_a_server_that_stops_has_told_of_every_answer():
    observed = list[tuple[str, str, int, float]]()
    app = RequestContext(FastAPI(), Later(), lambda *told: observed.append(told))
    told: asyncio.Queue[str] = asyncio.Queue()
    comes: asyncio.Queue[dict[str, object]] = asyncio.Queue()

    async def send(message: dict[str, object]) -> None:
        await told.put(str(message["type"]))

    running = asyncio.create_task(app({"type": "lifespan", "asgi": {}}, comes.get, send))  # type: ignore[arg-type]
    await comes.put({"type": "lifespan.startup"})
    assert await told.get() == "lifespan.startup.complete"
    await app({"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}, comes.get, send)  # type: ignore[arg-type]
    assert observed == []

    await comes.put({"type": "lifespan.shutdown"})
    await running

    assert [(method, status) for method, _, status, _ in observed] == [("GET", 404)]
