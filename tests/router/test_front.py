"""The short way of requests for pictures, and where it must not differ from FastAPI's."""

import asyncio

import httpx
import pytest

from common import later
from common.errors import RunCancelled
from common.web.clients import while_client_stays
from tests.router.conftest import MakeHouse

PICTURES = ("/v1/images/generations", "/v1/images/edits", "/v1/images/variations")


async def test_the_document_tells_of_the_routes_that_take_the_short_way(make_house: MakeHouse):
    house = await make_house()

    paths = (await house.client.get("/openapi.json")).json()["paths"]

    for path in PICTURES:
        assert {"bearer": []} in paths[path]["post"]["security"]
        assert "requestBody" in paths[path]["post"]


async def test_an_error_on_the_short_way_has_the_envelope_and_an_id_of_its_request(make_house: MakeHouse):
    house = await make_house()
    async with httpx.AsyncClient(base_url=house.url) as stranger:
        for path in PICTURES:
            reply = await stranger.post(path, headers={"x-request-id": "mine-1"})

            assert reply.status_code == 401
            assert reply.json()["error"]["type"] == "invalid_request_error"
            assert reply.headers["x-request-id"] == "mine-1"


async def test_a_scrape_tells_of_the_answer_that_was_given_just_before_it(
    make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(later, "LATER_S", 60)
    house = await make_house("one")
    await house.generate()

    scraped = (await house.client.get("/metrics")).text

    route = f'method="POST",route="{PICTURES[0]}",status="2xx"'
    assert f"aquatint_router_http_requests_total{{{route}}} 1.0" in scraped
    assert 'aquatint_runs_total{model="fake/model:1",outcome="succeeded"} 1.0' in scraped


async def test_other_methods_on_the_paths_of_pictures_are_answered_by_fastapi(make_house: MakeHouse):
    house = await make_house()

    for path in PICTURES:
        refused = await house.client.get(path)
        assert (refused.status_code, refused.headers["allow"]) == (405, "OPTIONS, POST")
        assert (await house.client.options(path)).status_code == 204


async def test_a_request_of_the_short_way_is_counted_under_its_route(make_house: MakeHouse):
    house = await make_house("a")

    assert (await house.generate()).status_code == 200

    told = (await house.client.get("/metrics")).text
    assert 'method="POST",route="/v1/images/generations",status="2xx"} 1.0' in told


async def test_a_block_is_cancelled_when_its_client_leaves_and_has_ended_by_then():
    gone, ended = asyncio.Event(), False

    async def receive() -> dict[str, str]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def block() -> None:
        nonlocal ended
        async with while_client_stays(receive):
            gone.set()
            try:
                await asyncio.Event().wait()
            finally:
                ended = True

    with pytest.raises(RunCancelled):
        await block()
    assert ended


async def test_who_cancels_a_block_from_outside_is_not_taken_for_its_client():
    began = asyncio.Event()

    async def receive() -> dict[str, str]:
        await asyncio.Event().wait()
        raise AssertionError

    async def block() -> None:
        async with while_client_stays(receive):
            began.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(block())
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
