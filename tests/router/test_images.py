"""The public face, over real sockets and on both databases."""

import asyncio
import base64
import io
from typing import Any

import httpx
import pytest
from openai import APIStatusError, AsyncOpenAI, AuthenticationError, BadRequestError
from PIL import Image

from common.catalog import RunStatus
from common.images_api import LoraAsk, Size
from tests.fakes.node import MODEL, pixels_for
from tests.router.conftest import ADMIN_KEY, USER_KEY, MakeHouse, until


def opened(b64: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(b64)))


def bytes_of(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


async def test_the_openai_sdk_gets_a_picture_of_the_size_it_asked_for(make_house: MakeHouse):
    house = await make_house("a")
    sdk = AsyncOpenAI(base_url=f"{house.url}/v1", api_key=USER_KEY)

    answer = await sdk.images.generate(model=MODEL, prompt="a cat", size="256x128", n=2, extra_body={"seed": 41})  # type: ignore[arg-type]

    assert answer.data is not None
    assert answer.model_extra is not None
    pictures = [opened(item.b64_json or "") for item in answer.data]
    assert [p.size for p in pictures] == [(256, 128)] * 2
    assert [p.getpixel((0, 0)) for p in pictures] == [pixels_for("a cat", s, Size(1, 1)).getpixel((0, 0)) for s in (41, 42)]
    run = await house.catalog.runs.get(answer.model_extra["id"])
    assert run.status is RunStatus.SUCCEEDED
    assert [image.seed for image in run.images] == [41, 42]
    await sdk.close()


async def test_the_answer_says_what_it_came_from(make_house: MakeHouse):
    house = await make_house("a")

    reply = await house.generate(n=2, seed=7, size_width=5)

    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-run-id"] == reply.json()["id"]
    assert reply.headers["x-request-id"].startswith("req_")
    assert reply.headers["x-ignored-params"] == "size_width"


async def test_a_clients_request_id_is_kept(make_house: MakeHouse):
    house = await make_house("a")

    reply = await house.client.get("/v1/models", headers={"x-request-id": "mine-1"})
    odd = await house.client.get("/v1/models", headers={"x-request-id": "a b"})

    assert reply.headers["x-request-id"] == "mine-1"
    assert odd.headers["x-request-id"].startswith("req_")


async def test_models_are_listed_and_found_by_ids_with_slashes_and_colons(make_house: MakeHouse):
    house = await make_house("a", "b", models={"b": ["other"]})
    sdk = AsyncOpenAI(base_url=f"{house.url}/v1", api_key=USER_KEY)

    listed = await sdk.models.list()
    found = await sdk.models.retrieve(MODEL)

    assert [model.id for model in listed.data] == [MODEL, "other"]
    assert found.id == MODEL
    with pytest.raises(APIStatusError) as caught:
        await sdk.models.retrieve("nobody/has:it")
    assert (caught.value.status_code, caught.value.code) == (404, "model_not_found")
    await sdk.close()


async def test_an_alias_leads_to_its_model_and_is_remembered_as_what_was_asked(make_house: MakeHouse):
    house = await make_house("a")
    await house.client.put("/admin/aliases/gpt-image-2", json={"model": MODEL})

    reply = await house.client.post("/v1/images/generations", json={"prompt": "x", "model": "gpt-image-2"})

    run = await house.catalog.runs.get(reply.json()["id"])
    assert (run.requested_model, run.model) == ("gpt-image-2", MODEL)
    listed = (await house.client.get("/v1/models")).json()["data"]
    assert [(m["id"], m["alias_of"]) for m in listed] == [(MODEL, None), ("gpt-image-2", MODEL)]


async def test_an_alias_cannot_lead_to_a_model_that_nobody_has(make_house: MakeHouse):
    house = await make_house("a")

    reply = await house.client.put("/admin/aliases/mine", json={"model": "nobody/has-it"})

    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")


async def test_a_request_without_a_model_gets_the_default_one(make_house: MakeHouse):
    house = await make_house("a")

    reply = await house.client.post("/v1/images/generations", json={"prompt": "x"})

    assert reply.json()["model"] == MODEL


async def test_a_model_that_nobody_has_is_a_wrong_value_and_one_that_is_away_is_not(make_house: MakeHouse):
    house = await make_house("a")

    unknown = await house.generate(model="nobody/has-it")
    await house.catalog.models.upsert(name="away", family="f", profile="p", licence=None, capabilities={}, files=[])
    away = await house.generate(model="away")

    assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "model")
    assert unknown.json()["error"]["type"] == "image_generation_user_error"
    assert (away.status_code, away.json()["error"]["code"]) == (503, "no_capacity")
    assert 1 <= int(away.headers["retry-after"]) <= 60


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nowhere", 404),
        ("GET", "/v1/images/generations", 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/v1/chat/completions", 404),
        ("GET", "/v1/runs/run_nobody", 404),
        ("GET", "/v1/assets/img_x.png?expires=9999999999&signature=00", 404),
        ("GET", "/v1/assets/..%2f..%2fetc%2fpasswd", 404),
    ],
)
async def test_every_error_is_an_envelope(make_house: MakeHouse, method: str, path: str, status: int):
    house = await make_house()

    reply = await house.client.request(method, path)

    assert reply.status_code == status
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert reply.headers["x-request-id"]


async def test_bodies_that_are_too_large_or_not_json_are_refused_in_the_envelope(make_house: MakeHouse):
    house = await make_house("a")
    large = b'{"prompt": "' + b"x" * 30_000_000 + b'"}'

    async def chunked() -> Any:
        for start in range(0, len(large), 1 << 16):
            yield large[start : start + (1 << 16)]

    for content in (large, chunked()):
        reply = await house.client.post("/v1/images/generations", content=content)
        assert (reply.status_code, reply.json()["error"]["code"]) == (413, "request_too_large")
    for content in (b"", b'{"prompt": NaN}', b'{"prompt": "\\ud800"}', b"[" * 200_000, b'{"prompt":"x","n":1e400}'):
        reply = await house.client.post("/v1/images/generations", content=content)
        assert reply.status_code == 400
        assert reply.json()["error"]["message"]
    assert not house.nodes["a"].started


async def test_a_wrong_key_is_told_apart_from_none_and_neither_reads_the_body(make_house: MakeHouse):
    house = await make_house("a")

    async def never() -> Any:
        yield b"{"
        raise AssertionError("the body was read")

    async with httpx.AsyncClient(base_url=house.url) as client:
        none = await client.post("/v1/images/generations", json={"prompt": "x"})
        azure = await client.get("/v1/models?api-version=2026-01-01", headers={"api-key": USER_KEY})
    sdk = AsyncOpenAI(base_url=f"{house.url}/v1", api_key="sk-wrong-0123456789abcdef")
    with pytest.raises(AuthenticationError) as caught:
        await sdk.images.generate(prompt="x")

    assert (none.status_code, none.json()["error"]["code"]) == (401, None)
    assert "didn't provide" in none.json()["error"]["message"]
    assert caught.value.code == "invalid_api_key"
    assert "0123456789" not in caught.value.message
    assert azure.status_code == 200
    await sdk.close()


async def test_errors_reach_the_sdks_own_exceptions(make_house: MakeHouse):
    house = await make_house("a")
    sdk = AsyncOpenAI(base_url=f"{house.url}/v1", api_key=USER_KEY)

    with pytest.raises(BadRequestError) as caught:
        await sdk.images.generate(model=MODEL, prompt="x", n=11)

    assert (caught.value.param, caught.value.code) == ("n", "integer_above_max_value")
    assert "<= 10" in caught.value.message
    await sdk.close()


async def test_every_route_but_the_open_ones_needs_a_key(make_house: MakeHouse):
    house = await make_house()
    paths = (await house.client.get("/openapi.json")).json()["paths"]
    open_routes = {"/health", "/ready", "/metrics", "/v1/assets/{name}"}
    async with httpx.AsyncClient(base_url=house.url) as client:
        for path, methods in paths.items():
            for method in methods:
                reply = await client.request(method, path.replace("{", "").replace("}", ""))
                if path in open_routes:
                    assert reply.status_code != 401, (method, path)
                else:
                    assert reply.status_code == 401, (method, path)
    assert len(paths) > 12


async def test_a_users_key_does_not_open_the_admin_api(make_house: MakeHouse):
    house = await make_house("a")
    paths = (await house.client.get("/openapi.json")).json()["paths"]
    headers = {"authorization": f"Bearer {USER_KEY}"}

    for path, methods in paths.items():
        if path.startswith("/admin"):
            for method in methods:
                reply = await house.client.request(method, path.replace("{", "").replace("}", ""), headers=headers)
                assert reply.status_code == 403, (method, path)


async def test_a_run_is_seen_by_its_own_key_and_by_admins_only(make_house: MakeHouse):
    house = await make_house("a")
    run_id = (await house.generate()).json()["id"]
    other = (await house.client.post("/admin/keys", json={"name": "other"})).json()["key"]

    own = await house.client.get(f"/v1/runs/{run_id}", headers={"authorization": f"Bearer {ADMIN_KEY}"})
    strange = await house.client.get(f"/v1/runs/{run_id}", headers={"authorization": f"Bearer {other}"})

    assert own.json()["status"] == "succeeded"
    assert own.json()["attempts"][0]["node"] == "a"
    assert strange.status_code == 404


async def test_a_client_that_leaves_takes_its_run_with_it(make_house: MakeHouse):
    house = await make_house("a")
    house.nodes["a"].faults.seconds = 60
    request = asyncio.create_task(house.generate())
    await until(lambda: bool(house.nodes["a"].jobs))
    run_id = house.nodes["a"].started[0]

    request.cancel()

    await until(lambda: house.nodes["a"].cancelled == [run_id])
    await until(lambda: not house.services.dispatcher.held)
    assert (await house.catalog.runs.get(run_id)).status is RunStatus.CANCELLED


async def test_the_progress_of_a_request_can_be_watched_under_its_request_id(make_house: MakeHouse):
    house = await make_house("a", node_depth=0)
    house.nodes["a"].faults.seconds = 60
    requests = []
    for name in ("first", "second"):
        body = {"prompt": "x", "model": MODEL}
        requests.append(
            asyncio.create_task(house.client.post("/v1/images/generations", json=body, headers={"x-request-id": name}))
        )
        await until(lambda: len(house.services.dispatcher.held) == len(requests))
    await until(lambda: bool(house.nodes["a"].jobs))

    running = (await house.client.get("/v1/runs", params={"request_id": "first"})).json()["data"]
    waiting = (await house.client.get("/v1/runs", params={"request_id": "second"})).json()["data"]

    assert [(r["phase"], r["steps"]) for r in running] == [("running", 4)]
    assert [(r["phase"], r["position"]) for r in waiting] == [("queued", 1)]
    for request in requests:
        request.cancel()


async def test_metrics_are_understood_by_prometheus_and_do_not_grow_with_what_clients_send(make_house: MakeHouse):
    from prometheus_client.parser import text_string_to_metric_families

    house = await make_house("a")
    await house.generate()
    before = (await house.client.get("/metrics")).text

    for number in range(50):
        await house.client.get(f"/v1/{number}")
        await house.generate(model=f"model-{number}")

    after = (await house.client.get("/metrics")).text
    families = {family.name for family in text_string_to_metric_families(after)}
    assert {"aquatint_runs", "aquatint_attempts", "aquatint_queue_depth", "aquatint_node_up", "aquatint_build_info"} <= families
    assert len(after.splitlines()) - len(before.splitlines()) < 60
    assert "model-7" not in after


@pytest.mark.parametrize("path", ["/v1/images/generations/", "/images/generations", "/images/generations/"])
async def test_paths_with_a_slash_too_many_or_without_the_version_lead_to_the_same_route(make_house: MakeHouse, path: str):
    house = await make_house("a")

    reply = await house.client.post(path, json={"prompt": "x", "model": MODEL})
    listed = await house.client.get("/models")

    assert (reply.status_code, listed.status_code) == (200, 200)
    assert 'route="/v1/images/generations"' in (await house.client.get("/metrics")).text


async def test_names_that_clients_have_built_in_lead_to_the_demonstration_model(make_house: MakeHouse):
    house = await make_house("a", models={"a": ["aquatint-demo"]})

    reply = await house.client.post("/v1/images/generations", json={"prompt": "x", "model": "gpt-image-1"})
    listed = [m["id"] for m in (await house.client.get("/v1/models")).json()["data"]]

    assert reply.json()["model"] == "aquatint-demo"
    assert {"aquatint-demo", "dall-e-3", "gpt-image-1"} <= set(listed)


async def test_the_openapi_document_says_what_the_table_of_fields_says(make_house: MakeHouse):
    house = await make_house()

    document = (await house.client.get("/openapi.json")).json()

    body = document["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]
    assert set(body) == {"application/json", "multipart/form-data"}
    properties = body["multipart/form-data"]["schema"]["properties"]
    assert properties["n"]["maximum"] == 10
    assert {"steps", "num_inference_steps", "image", "mask", "strength"} <= set(properties)
    generation = document["paths"]["/v1/images/generations"]["post"]
    assert generation["requestBody"]["content"]["application/json"]["schema"]["required"] == ["prompt"]
    assert {"200", "400", "401", "429", "503"} <= set(generation["responses"])
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert {"4XX", "5XX"} <= set(operation["responses"]), (method, path)
            assert "422" not in operation["responses"], (method, path)


async def test_a_method_that_is_not_allowed_is_answered_with_those_that_are(make_house: MakeHouse):
    house = await make_house()

    reply = await house.client.request("TRACE", "/v1/models")

    several = await house.client.request("PUT", "/admin/nodes/a")

    assert (reply.status_code, reply.headers["allow"]) == (405, "GET")
    assert (several.status_code, several.headers["allow"]) == (405, "DELETE, GET, PATCH")


async def test_a_task_that_no_node_has_a_pipeline_for_is_refused_before_it_waits(make_house: MakeHouse):
    house = await make_house("a", "b")
    for node in house.nodes.values():
        node.tasks = ["generation"]
    await until(lambda: house.services.registry.abilities(MODEL).tasks == {"generation"})
    ask = {"model": MODEL, "prompt": "x"}
    png = io.BytesIO()
    Image.new("RGB", (8, 8)).save(png, "PNG")

    refused = await house.client.post("/v1/images/edits", data=ask, files={"image": png.getvalue()})
    house.nodes["b"].tasks = ["edit"]
    await until(lambda: house.services.registry.abilities(MODEL).tasks == {"generation", "edit"})
    edited = await house.client.post("/v1/images/edits", data=ask, files={"image": png.getvalue()})

    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "unsupported_task")
    assert edited.status_code == 200
    assert [len(house.nodes[name].started) for name in "ab"] == [0, 1]
    assert len(await house.catalog.runs.list()) == 1


async def test_a_lora_goes_to_a_node_that_has_it_whether_named_in_the_field_or_in_the_prompt(make_house: MakeHouse):
    house = await make_house("a", "b", "c")
    house.nodes["b"].loras = ["ink"]
    await until(lambda: bool(house.services.registry.abilities(MODEL).loras))

    replies = [await house.generate(loras=[{"name": "ink", "weight": 0.5}]) for _ in range(2)]
    replies += [await house.generate("a cat <lora:ink:0.8>") for _ in range(2)]

    assert [reply.status_code for reply in replies] == [200] * 4
    assert [len(house.nodes[name].started) for name in "abc"] == [0, 4, 0]
    assert house.nodes["b"].asked[0].loras == (LoraAsk("ink", 0.5),)
    assert house.nodes["b"].asked[2].prompt == "a cat <lora:ink:0.8>"
    run = await house.catalog.runs.get(replies[0].json()["id"])
    assert run.request["loras"] == [{"name": "ink", "scale": 0.5, "trigger": False}]


async def test_a_lora_that_no_node_knows_is_answered_as_the_node_answers(make_house: MakeHouse):
    house = await make_house("a")

    reply = await house.generate(loras=["../../etc/passwd"])

    assert reply.status_code == 400
    assert reply.json()["error"] | {"message": ""} == {
        "message": "",
        "type": "invalid_request_error",
        "param": "loras",
        "code": "lora_not_found",
    }


async def test_a_lora_beyond_its_scale_is_refused_before_it_is_queued(make_house: MakeHouse):
    house = await make_house("a")

    replies = [await house.generate(loras=[{"name": "x", "scale": 5}]), await house.generate("a <lora:x:5>")]

    assert [(reply.status_code, reply.json()["error"]["param"]) for reply in replies] == [(400, "loras"), (400, "prompt")]
    assert house.nodes["a"].started == []


async def test_a_control_net_is_asked_of_a_node_that_has_it_and_its_picture_goes_along(make_house: MakeHouse):
    house = await make_house("a", "b", "c")
    house.nodes["b"].extras = ["the ControlNet 'edges'", "a ControlNet for canny"]
    await until(lambda: bool(house.services.registry.abilities(MODEL).extras))
    picture = bytes_of(Image.new("RGB", (8, 8)))
    control = {"image": base64.b64encode(picture).decode(), "scale": 0.5}

    replies = [await house.generate(control=[control | {"kind": "canny"}]) for _ in range(2)]
    replies += [await house.generate(control=[control | {"name": "edges"}])]

    assert [reply.status_code for reply in replies] == [200] * 3
    assert [len(house.nodes[name].started) for name in "abc"] == [0, 3, 0]
    (asked,) = house.nodes["b"].asked[0].control
    assert (asked.kind, asked.scale, asked.image.content) == ("canny", 0.5, picture)
    run = await house.catalog.runs.get(replies[2].json()["id"])
    assert run.request["control"] == [{"name": "edges", "scale": 0.5, "start": 0.0, "end": 1.0, "preprocess": "none"}]
