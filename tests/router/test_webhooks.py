"""Webhooks of async runs: signed as Standard Webhooks wants it, sent again when they fail, and only where they may go."""

import asyncio
import base64
import hashlib
import hmac
import socket
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson
import pytest
from fastapi import FastAPI, Request, Response

from router import webhooks
from router.webhooks import signed
from tests.fakes.node import MODEL, Faults
from tests.router.conftest import House, MakeHouse, until
from tests.serving import served

ASYNC = {"prefer": "respond-async"}
LOOPBACK = ["127.0.0.0/8"]


@dataclass
class Receiver:
    """A client's own server. `answers`: statuses of its next answers; 204 after them."""

    url: str = ""
    answers: list[int] = field(default_factory=list)
    calls: list[tuple[dict[str, str], bytes]] = field(default_factory=list)


@pytest.fixture
async def receiver() -> AsyncGenerator[Receiver, None]:
    found = Receiver()
    app = FastAPI()

    @app.post("/done")
    async def done(request: Request) -> Response:
        found.calls.append((dict(request.headers), await request.body()))
        status = found.answers.pop(0) if found.answers else 204
        return Response(status_code=status, headers={"location": "/elsewhere"} if status == 302 else {})

    async with AsyncExitStack() as stack:
        found.url = await stack.enter_async_context(served(app))
        yield found


async def start(house: House, url: str) -> httpx.Response:
    asked = {"prompt": "a cat", "model": MODEL, "webhook_url": url}
    return await house.client.post("/v1/images/generations", json=asked, headers=ASYNC)


async def house_for(make_house: MakeHouse, receiver: Receiver, **settings: Any) -> House:
    return await make_house("a", webhook_origins=[receiver.url], webhook_networks=LOOPBACK, **settings)


def verified(headers: dict[str, str], body: bytes, secret: str) -> dict[str, Any]:
    """As Standard Webhooks' reference libraries verify."""
    assert secret.startswith("whsec_")
    key = base64.b64decode(secret.removeprefix("whsec_"))
    content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.{body.decode()}"
    expected = base64.b64encode(hmac.new(key, content.encode(), hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
    return dict(orjson.loads(body))


def test_a_signature_is_that_of_the_specification():
    headers = signed(
        "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}', "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    )

    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


async def test_the_end_of_a_run_is_told_once_and_signed_with_the_keys_own_secret(make_house: MakeHouse, receiver: Receiver):
    house = await house_for(make_house, receiver)
    secret = (await house.client.get("/v1/webhooks/secret")).json()["secret"]

    run_id = (await start(house, f"{receiver.url}/done")).json()["id"]
    await until(lambda: bool(receiver.calls))

    headers, body = receiver.calls[0]
    told = verified(headers, body, secret)
    assert (told["type"], told["data"]["id"], headers["webhook-id"]) == ("run.succeeded", run_id, f"msg_{run_id}")
    assert (await house.client.get(told["data"]["images"][0]["url"])).status_code == 200
    assert "node" not in told["data"]["attempts"][0]
    shown = (await house.client.get(f"/v1/runs/{run_id}")).json()["webhook"]
    assert (shown["url"], shown["tries"]) == (f"{receiver.url}/done", 1)


async def test_failure_and_cancellation_are_told_too(make_house: MakeHouse, receiver: Receiver):
    house = await house_for(make_house, receiver)
    house.nodes["a"].faults = Faults("error_500", times=1)
    await start(house, f"{receiver.url}/done")
    await until(lambda: len(receiver.calls) == 1)
    house.nodes["a"].faults.seconds = 60
    run_id = (await start(house, f"{receiver.url}/done")).json()["id"]
    await house.client.delete(f"/v1/runs/{run_id}")
    await until(lambda: len(receiver.calls) == 2)

    assert [orjson.loads(body)["type"] for _, body in receiver.calls] == ["run.failed", "run.cancelled"]


async def test_a_webhook_that_is_not_taken_is_sent_again_as_the_same_event(
    make_house: MakeHouse, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(webhooks, "AGAIN_AFTER_S", (0.05, 0.05, 0.05))
    monkeypatch.setattr(webhooks, "LOOK_EVERY_S", 0.02)
    receiver.answers = [500, 302]
    house = await house_for(make_house, receiver)

    run_id = (await start(house, f"{receiver.url}/done")).json()["id"]
    await until(lambda: len(receiver.calls) == 3)

    assert {headers["webhook-id"] for headers, _ in receiver.calls} == {f"msg_{run_id}"}
    record = await house.catalog.async_runs.get(run_id)
    assert record is not None
    assert record.webhook_tries == 3


@pytest.mark.parametrize(("answers", "calls"), [([500] * 9, 3), ([410], 1)])
async def test_a_webhook_that_is_never_taken_is_given_up(
    make_house: MakeHouse, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, answers: list[int], calls: int
):
    monkeypatch.setattr(webhooks, "AGAIN_AFTER_S", (0.05, 0.05))
    monkeypatch.setattr(webhooks, "LOOK_EVERY_S", 0.02)
    receiver.answers = list(answers)
    house = await house_for(make_house, receiver)
    run_id = (await start(house, f"{receiver.url}/done")).json()["id"]

    async with asyncio.timeout(20):
        while (record := await house.catalog.async_runs.get(run_id)) is None or record.webhook_pending:
            await asyncio.sleep(0.02)

    assert (record.webhook_tries, len(receiver.calls)) == (calls, calls)
    assert record.webhook_error is not None


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/done",
        "http://127.0.0.1:9/done",
        "http://169.254.169.254/latest",
        "ftp://127.0.0.1/",
        "no url",
        "http://user:word@127.0.0.1/",
    ],
)
async def test_only_listed_origins_may_be_called(make_house: MakeHouse, receiver: Receiver, url: str):
    house = await house_for(make_house, receiver)

    reply = await start(house, url)

    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_webhook_url")
    assert reply.json()["error"]["param"] == "webhook_url"
    assert await house.catalog.runs.list() == []


async def test_a_listed_name_that_leads_into_the_own_network_is_not_called(make_house: MakeHouse, receiver: Receiver):
    port = int(receiver.url.rpartition(":")[2])
    url = f"http://localhost:{port}/done"
    assert socket.gethostbyname("localhost") == "127.0.0.1"
    house = await make_house("a", webhook_origins=[f"http://localhost:{port}"])

    run_id = (await start(house, url)).json()["id"]
    async with asyncio.timeout(20):
        while (record := await house.catalog.async_runs.get(run_id)) is None or record.webhook_error is None:
            await asyncio.sleep(0.02)

    assert (record.webhook_error, receiver.calls) == ("no connection", [])


async def test_a_webhook_needs_an_async_request(make_house: MakeHouse, receiver: Receiver):
    house = await house_for(make_house, receiver)

    reply = await house.generate(webhook_url=f"{receiver.url}/done")

    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "invalid_webhook_url")
