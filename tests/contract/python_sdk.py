"""What the openai package for Python makes of the server. `python python_sdk.py URL KEY NODE`; needs nothing but the package.

Written for every version from 2.29 on, so arguments that came later travel in `extra_body`. NODE is where faults are set.
"""

import asyncio
import io
import json
import sys
import time
import urllib.request
from collections.abc import Callable

import openai
from checking import MODEL, WRONG_KEY, png, refusal, refusal_of, size_of


def check_generations(client: openai.OpenAI) -> None:
    """Bytes, links, seeds, extra keys."""
    answer = client.images.generate(model=MODEL, prompt="猫", n=2, size="256x128", extra_body={"seed": 41})
    assert [size_of(item.b64_json) for item in answer.data] == [(256, 128)] * 2
    assert [item.seed for item in answer.data] == [41, 42]
    assert answer.usage.total_tokens > 0
    assert answer.size == "256x128"
    linked = client.images.generate(model="dall-e-3", prompt="x", size="1024x1024", style="vivid", quality="hd")
    assert linked.data[0].url.startswith(str(client.base_url))
    nulls = client.images.generate(model=MODEL, prompt="x", size=None, quality=None, n=None, extra_body={"seed": None})
    assert nulls.data[0].b64_json


def check_raw(client: openai.OpenAI) -> None:
    """Headers beside the answer, and a body that is read by the caller."""
    raw = client.images.with_raw_response.generate(model=MODEL, prompt="x", extra_body={"size_width": 5})
    assert raw.headers["x-request-id"]
    assert raw.headers["x-run-id"].startswith("run_")
    assert raw.headers["x-ignored-params"] == "size_width"
    parsed = raw.parse()
    assert parsed.data[0].b64_json
    assert parsed._request_id == raw.headers["x-request-id"]
    with client.images.with_streaming_response.edit(model=MODEL, image=png(), prompt="x") as lazy:
        assert lazy.headers["content-type"] == "application/json"
        assert json.loads(b"".join(lazy.iter_bytes()))["data"][0]["b64_json"]


def check_edits(client: openai.OpenAI) -> None:
    """Bytes, files, tuples, lists, a mask."""
    for image in (png(), io.BytesIO(png()), ("a.png", png(), "image/png"), [png()], [png(), ("b.png", png(48, 48))]):
        answer = client.images.edit(model=MODEL, image=image, prompt="x", mask=png(), extra_body={"strength": 0.5})
        assert answer.data[0].b64_json
    varied = client.images.create_variation(image=png(), n=2, size="256x256")
    assert [size_of(item.b64_json) for item in varied.data] == [(256, 256)] * 2


def check_streams(client: openai.OpenAI, node: str) -> None:
    """Previews and the picture, of generations and edits; what fails before the stream, and what fails in it."""
    asked = {"model": MODEL, "prompt": "x", "size": "256x256", "stream": True, "partial_images": 2}
    for call, kind in (
        (lambda: client.images.generate(**asked), "image_generation"),
        (lambda: client.images.edit(image=png(), **asked), "image_edit"),
    ):
        events = list(call())
        assert [event.type for event in events] == [f"{kind}.partial_image"] * 2 + [f"{kind}.completed"]
        assert [event.partial_image_index for event in events[:-1]] == [0, 1]
        assert {size_of(event.b64_json) for event in events} == {(256, 256)}
        assert (events[-1].size, events[-1].output_format, events[-1].background) == ("256x256", "png", "opaque")
        assert events[-1].usage.total_tokens > 0
    error = refusal(lambda: client.images.generate(n=2, **asked), openai.BadRequestError)
    assert error.param == "n"
    set_fault(node, mode="fail_in_stream", times=1)
    seen = []
    error = refusal(lambda: seen.extend(event.type for event in client.images.generate(**asked)), openai.APIError)
    assert error.code == "engine_failed"
    with client.images.generate(**asked) as stream:
        assert next(iter(stream)).type == "image_generation.partial_image"


def check_models(client: openai.OpenAI) -> None:
    """Lists, ids with slashes and colons."""
    assert {MODEL, "org/other:1", "dall-e-3"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("org/other:1").id == "org/other:1"
    assert refusal(lambda: client.models.retrieve("no/one"), openai.NotFoundError).code == "model_not_found"
    # OpenAI answers a model that is not one's own with 404 or 403; here no model can be deleted by this route.
    refusal(lambda: client.models.delete(MODEL), openai.APIStatusError)


def check_errors(client: openai.OpenAI) -> None:
    """The SDK's own classes, with code and param."""
    error = refusal(lambda: client.images.generate(model=MODEL, prompt="x", n=11), openai.BadRequestError)
    assert (error.code, error.param) == ("integer_above_max_value", "n")
    assert "Expected a value <= 10, but got 11 instead" in str(error)
    error = refusal(lambda: client.images.generate(model="no/one", prompt="x"), openai.BadRequestError)
    assert (error.type, error.param) == ("image_generation_user_error", "model")
    error = refusal(lambda: client.images.edit(model=MODEL, image=b"%PDF", prompt="x"), openai.BadRequestError)
    assert error.code == "unsupported_file_mimetype"
    error = refusal(lambda: client.images.create_variation(image=[png(), png()]), openai.BadRequestError)
    assert error.code == "array_above_max_length"
    stranger = client.with_options(api_key=WRONG_KEY)
    error = refusal(lambda: stranger.images.generate(model=MODEL, prompt="x"), openai.AuthenticationError)
    assert error.code == "invalid_api_key"
    assert error.request_id
    refusal(lambda: client.get(f"{root_of(client)}/admin/nodes", cast_to=object), openai.PermissionDeniedError)
    refusal(lambda: client.get("/nowhere", cast_to=object), openai.NotFoundError)
    error = refusal(
        lambda: client.post("/images/generations", body={"prompt": "x" * 2_000_000}, cast_to=object), openai.APIStatusError
    )
    assert (error.status_code, error.code) == (413, "request_too_large")


def set_fault(node: str, **fault: object) -> None:
    """What goes wrong next at the node."""
    asked = urllib.request.Request(f"{node}/fake", json.dumps(fault).encode(), {"content-type": "application/json"})
    urllib.request.urlopen(asked).close()


def root_of(client: openai.OpenAI | openai.AsyncOpenAI) -> str:
    """The server's address, without the path of OpenAI's routes."""
    return str(client.base_url).removesuffix("/v1/")


def figure(client: openai.OpenAI | openai.AsyncOpenAI, name: str, label: str = "") -> int:
    """The sum of one of the server's own figures, over the lines that hold `label`."""
    lines = urllib.request.urlopen(f"{root_of(client)}/metrics").read().decode().splitlines()
    return round(sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name) and label in line))


def requests_of(client: openai.OpenAI, call: Callable[[], object], kind: type[openai.APIStatusError]) -> tuple[int, float]:
    """How many requests for generations reached the server for one call that fails, and how many seconds that took."""
    name, route = "aquatint_router_http_requests_total", 'route="/v1/images/generations"'
    before, began_s = figure(client, name, route), time.monotonic()
    refusal(call, kind)
    return figure(client, name, route) - before, time.monotonic() - began_s


def check_retries(client: openai.OpenAI, node: str) -> None:
    """Retried are answers that say or allow it, after the time they name; never those that a retry would only repeat."""
    once_more = client.with_options(max_retries=1)
    sent, took_s = requests_of(client, lambda: once_more.images.generate(model="away", prompt="x"), openai.InternalServerError)
    error = refusal(
        lambda: client.with_options(max_retries=0).images.generate(model="away", prompt="x"), openai.InternalServerError
    )
    assert (error.status_code, error.code) == (503, "no_capacity")
    assert sent == 2
    assert took_s >= float(error.response.headers["retry-after"])
    set_fault(node, mode="error_500", times=3)
    sent, _ = requests_of(client, lambda: client.images.generate(model=MODEL, prompt="x"), openai.InternalServerError)
    set_fault(node, mode="none", times=0)
    assert sent == 1, "an engine that failed was asked again"
    sent, _ = requests_of(client, lambda: client.images.generate(model=MODEL, prompt="x", n=0), openai.BadRequestError)
    assert sent == 1
    assert client.images.generate(model=MODEL, prompt="x").data[0].b64_json


async def check_full_queue(client: openai.AsyncOpenAI, node: str) -> None:
    """A full queue is a rate limit with a time to wait. Those who leave make room for the others."""
    set_fault(node, mode="none", times=0, seconds=60)
    asked = {"model": MODEL, "prompt": "x"}
    waiting = [asyncio.create_task(client.images.generate(**asked)) for _ in range(8)]
    while figure(client, "aquatint_queue_depth") < 6:
        await asyncio.sleep(0.02)
    error = await refusal_of(client.with_options(max_retries=0).images.generate(**asked), openai.RateLimitError)
    assert (error.type, error.code) == ("requests", "rate_limit_exceeded")
    assert 1 <= int(error.response.headers["retry-after"]) <= 60
    late = asyncio.create_task(client.images.generate(**asked))
    refused = 'route="/v1/images/generations",status="4xx"'
    before = figure(client, "aquatint_router_http_requests_total", refused)
    while figure(client, "aquatint_router_http_requests_total", refused) == before:
        await asyncio.sleep(0.02)
    set_fault(node, mode="none", times=0, seconds=0.05)
    for each in waiting:
        each.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert (await late).data[0].b64_json, "the retry of a refused request succeeds"


async def check_async(url: str, key: str, node: str) -> None:
    """Many at once; the same forms, streams, raw answers and exceptions; a full queue."""
    async with openai.AsyncOpenAI(base_url=url, api_key=key) as client:
        answers = await asyncio.gather(*(client.images.generate(model=MODEL, prompt=str(i)) for i in range(5)))
        assert len({answer.data[0].b64_json for answer in answers}) == 5
        assert (await client.images.edit(model=MODEL, image=[png()], mask=png(), prompt="x")).data[0].b64_json
        assert len((await client.images.create_variation(image=png(), n=2)).data) == 2
        stream = await client.images.generate(model=MODEL, prompt="x", stream=True, partial_images=1)
        assert [event.type.rpartition(".")[2] async for event in stream] == ["partial_image", "completed"]
        raw = await client.images.with_raw_response.generate(model=MODEL, prompt="x")
        assert raw.headers["x-run-id"]
        async with client.images.with_streaming_response.generate(model=MODEL, prompt="x") as lazy:
            assert (await lazy.json())["data"]
        assert MODEL in [model.id async for model in client.models.list()]
        error = await refusal_of(client.images.generate(model=MODEL, prompt=""), openai.BadRequestError)
        assert (error.param, error.code) == ("prompt", "empty_string")
        await check_full_queue(client, node)


def main(url: str, key: str, node: str) -> None:
    """All of it."""
    with openai.OpenAI(base_url=url, api_key=key) as client:
        for check in (check_generations, check_raw, check_edits, check_models, check_errors):
            check(client)
        check_streams(client, node)
        check_retries(client, node)
    asyncio.run(check_async(url, key, node))
    print(f"openai {openai.__version__} for Python: all as it expects")


if __name__ == "__main__":
    main(*sys.argv[1:])
