"""The node as its users meet it: a real process, real sockets, OpenAI's own SDK."""

import base64
import io
import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest
from PIL import Image

from common.catalog import Catalog, RunRecord
from common.node_api import PLACES_HEADER, RUN_ID_HEADER, Holding, NodePhase
from tests.node.process import TOKEN, NodeProcess, running_node

LONG = {"model": "sd15", "prompt": "a fox", "n": 10, "size": "512x512", "num_inference_steps": 150, "seed": 1}
SHORT: dict[str, Any] = {"model": "sd15", "prompt": "a fox", "size": "64x64", "extra_body": {"seed": 41, "steps": 3}}


@pytest.fixture(scope="module")
def node(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    with running_node(tiny, tmp_path_factory.mktemp("home")) as started:
        yield started


async def run_row(node: NodeProcess, run_id: str) -> RunRecord:
    """What the catalog says of a run."""
    catalog = await Catalog.open(f"sqlite+aiosqlite:///{node.home / 'catalog.db'}")
    try:
        return await catalog.runs.get(run_id)
    finally:
        await catalog.close()


def test_the_sdk_gets_pictures_as_base64(node: NodeProcess):
    with node.sdk() as sdk:
        raw = sdk.images.with_raw_response.generate(**SHORT | {"n": 3})
    answer = raw.parse()

    assert answer.data is not None
    images = [Image.open(io.BytesIO(base64.b64decode(each.b64_json or ""))) for each in answer.data]
    assert [image.size for image in images] == [(64, 64)] * 3
    assert [each.url for each in answer.data] == [None] * 3
    assert (answer.size, answer.output_format, answer.background) == ("64x64", "png", "opaque")
    assert raw.headers["x-image-seeds"] == "41,42,43"
    assert raw.headers["x-run-id"].startswith("run_")
    assert raw.headers["content-type"] == "application/json"


def test_the_same_request_gives_the_same_bytes_alone_or_among_others(node: NodeProcess):
    with node.sdk() as sdk:
        three = sdk.images.generate(**SHORT | {"n": 3}).data or []
        single = [sdk.images.generate(**SHORT | {"extra_body": {"seed": seed, "steps": 3}}).data or [] for seed in (41, 42, 43)]

    assert [each.b64_json for each in three] == [each[0].b64_json for each in single]


async def test_a_preset_is_named_by_the_answer_the_run_and_the_file_and_ends_with_its_run(node: NodeProcess):
    def ask(**fields: Any) -> tuple[dict[str, Any], str]:
        extra = {"seed": 41, "steps": 6} | fields
        with node.sdk() as sdk:
            raw = sdk.images.with_raw_response.generate(**SHORT | {"extra_body": extra})
        answer = json.loads(raw.content)
        return answer["parameters"] | {"run": answer["id"]}, answer["data"][0]["b64_json"]

    plain, full = ask()
    told, quick = ask(preset="fast")

    assert (plain["preset"], told["preset"]) == ("full", "fast")
    assert (await run_row(node, told["run"])).effective["preset"] == "fast"
    assert "Preset: fast" in Image.open(io.BytesIO(base64.b64decode(quick))).info["parameters"]
    assert ask()[1] == full != quick


def test_a_preset_that_is_not_there_is_a_400(node: NodeProcess):
    with node.sdk() as sdk:
        with pytest.raises(openai.BadRequestError, match="Supported values are: 'full', 'balanced', and 'fast'"):
            sdk.images.generate(**SHORT | {"extra_body": {"preset": "best"}})
        with pytest.raises(openai.BadRequestError, match="this model has 'full', but got 'fast'") as no:
            sdk.images.generate(model="z-image", prompt="a fox", extra_body={"preset": "fast"})
    assert no.value.param == "preset"


def test_the_status_tells_how_a_loaded_model_computes(node: NodeProcess):
    with node.sdk() as sdk:
        sdk.images.generate(**SHORT)

    # The worker says it every two seconds.
    while not (tuning := next(each for each in node.status().models if each.id == "sd15").tuning):
        pass
    assert tuning == {
        "compile": "off: by setting",
        "attention": "native",
        "channels_last": "off: pays on cuda with half precision",
    }


def test_urls_are_signed_and_open_without_a_key(node: NodeProcess):
    with node.sdk() as sdk:
        answer = sdk.images.generate(**SHORT | {"response_format": "url", "output_format": "webp"})
    assert answer.data
    url = answer.data[0].url
    assert url is not None
    assert url.startswith(node.url)

    with node.http(key=None) as client:
        got, head = client.get(url), client.head(url)
        forged = client.get(url[:-1] + ("0" if url[-1] != "0" else "1"))
        other = client.get(url.replace(".webp", ".png"))

    assert Image.open(io.BytesIO(got.content)).format == "WEBP"
    assert (got.headers["content-type"], head.status_code, head.content) == ("image/webp", 200, b"")
    assert (forged.status_code, other.status_code) == (404, 404)


def test_ignored_parameters_are_told(node: NodeProcess):
    with node.sdk() as sdk:
        raw = sdk.images.with_raw_response.generate(
            **SHORT | {"model": "sdxl-turbo", "style": "vivid", "extra_body": {"negative_prompt": "x", "steps": 1, "odd": 1}}
        )

    assert set(raw.headers["x-ignored-params"].split(",")) == {"odd", "negative_prompt", "style"}


@pytest.mark.parametrize("model", ["sd15", "sdxl", "sdxl-turbo", "z-image"])
def test_every_family_makes_a_picture(node: NodeProcess, model: str):
    with node.sdk() as sdk:
        answer = sdk.images.generate(model=model, prompt="a fox", size="64x64", extra_body={"steps": 4})

    assert answer.data
    assert Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json or ""))).size == (64, 64)


async def test_the_catalog_holds_the_run_and_the_models(node: NodeProcess):
    with node.sdk() as sdk:
        raw = sdk.images.with_raw_response.generate(**SHORT)

    run = await run_row(node, raw.headers["x-run-id"])

    assert (run.status, run.node, run.seed, len(run.images)) == ("succeeded", "tester", 41, 1)
    catalog = await Catalog.open(f"sqlite+aiosqlite:///{node.home / 'catalog.db'}")
    assert [each.name for each in await catalog.models.list()] == ["sd15", "sdxl", "sdxl-turbo", "z-image"]
    await catalog.close()


def test_models_are_listed_and_found(node: NodeProcess):
    with node.sdk() as sdk:
        assert [model.id for model in sdk.models.list()] == ["sd15", "sdxl", "sdxl-turbo", "z-image"]
        assert sdk.models.retrieve("z-image").owned_by == "aquatint"
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            sdk.models.retrieve("org/none")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "nobody"}, "The model 'nobody' does not exist"),
        ({"size": "60x64"}, "Width must be 64 to 2048"),
        ({"extra_body": {"steps": 151}}, "takes 1 to 150"),
        ({"prompt": " "}, "empty string"),
    ],
)
def test_wrong_requests_are_told_in_openais_words(node: NodeProcess, changes: dict[str, Any], words: str):
    with node.sdk() as sdk, pytest.raises(openai.BadRequestError, match=words):
        sdk.images.generate(**SHORT | changes)


@pytest.mark.parametrize("path", ["/v1/models", "/node/v1/status"])
def test_nothing_opens_without_the_token(node: NodeProcess, path: str):
    for key in (None, "wrong", TOKEN + "x"):
        with node.http(key) as client:
            answer = client.get(path)
            assert answer.status_code == 401
            assert answer.json()["error"]["type"] == "invalid_request_error"
            assert answer.headers["x-request-id"]
    with node.sdk("wrong") as sdk, pytest.raises(openai.AuthenticationError):
        sdk.images.generate(**SHORT)


async def test_an_api_key_opens_v1_only_and_its_headers_are_not_believed(node: NodeProcess):
    catalog = await Catalog.open(f"sqlite+aiosqlite:///{node.home / 'catalog.db'}")
    _, secret = await catalog.keys.create(name="tester", scopes={"user"})
    await catalog.close()

    with node.http(secret) as client:
        assert client.get("/node/v1/status").status_code == 401
        answer = client.post(
            "/v1/images/generations",
            json={"model": "sd15", "prompt": "x", "size": "64x64", "steps": 1, "response_format": "url"},
            headers={"x-run-id": "run_forged", "x-aquatint-attempt": "1", "x-aquatint-public-url": "http://evil"},
        )

    assert answer.status_code == 200
    assert answer.headers["x-run-id"] != "run_forged"
    assert answer.json()["data"][0]["url"].startswith(node.url)


def test_load_and_unload_are_seen_in_the_status(node: NodeProcess):
    with node.http() as client:
        assert client.post("/node/v1/load", json={"model": "sdxl"}).json() == {"model": "sdxl", "resident": True}
        assert {model.id: model.resident for model in node.status().models}["sdxl"]
        assert client.post("/node/v1/unload", json={"model": "sdxl"}).json()["unloaded"]
        assert not {model.id: model.resident for model in node.status().models}["sdxl"]
        assert client.post("/node/v1/load", json={"model": "nobody"}).status_code == 404
        assert client.post("/node/v1/load", json={"modell": "x"}).status_code == 400
    assert "sdxl" in node.status().load_s


def test_a_draining_node_refuses_until_resumed(node: NodeProcess):
    with node.http() as client, node.sdk() as sdk:
        assert client.post("/node/v1/drain").json()["phase"] == NodePhase.DRAINING
        assert client.get("/ready").json() == {"ready": False, "reasons": ["the node is draining"]}
        with pytest.raises(openai.InternalServerError, match="draining"):
            sdk.images.generate(**SHORT)
        client.post("/node/v1/resume")
        assert client.get("/ready").status_code == 200
        assert sdk.images.generate(**SHORT).data


async def test_a_client_that_hangs_up_frees_the_worker(node: NodeProcess):
    with ThreadPoolExecutor(1) as pool, node.http() as client:
        pool.submit(_post_and_hang_up, node.url)
        run_id = node.running()
        hung_up.set()
        node.idle()
        assert client.get("/health").json()["status"] == "ok"

    assert (await run_row(node, run_id)).status == "cancelled"


hung_up = threading.Event()


def _post_and_hang_up(url: str) -> None:
    where = urlsplit(url)
    body = json.dumps(LONG).encode()
    head = (
        f"POST /v1/images/generations HTTP/1.1\r\nHost: {where.netloc}\r\nAuthorization: Bearer {TOKEN}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((where.hostname, where.port)) as connection:
        connection.sendall(head.encode() + body)
        hung_up.wait(60)


async def test_cancel_queue_limits_and_health_during_a_run(node: NodeProcess):
    with ThreadPoolExecutor(2) as pool, node.http() as client:
        long = pool.submit(client.post, "/v1/images/generations", json=LONG)
        run_id = node.running()
        waiting = pool.submit(client.post, "/v1/images/generations", json=LONG)
        while len(node.status().jobs) < 2:
            pass

        assert [job.phase for job in node.status().jobs] == ["running", "queued"]
        full = client.post("/v1/images/generations", json=LONG)
        assert client.get("/health").status_code == 200
        assert client.post("/node/v1/cancel", json={"run_id": "nobody"}).json()["cancelled"] is False
        for job in node.status().jobs[::-1]:
            assert client.post("/node/v1/cancel", json={"run_id": job.run_id}).json()["cancelled"] is True
        answers = [long.result(60), waiting.result(60)]

    assert (full.status_code, full.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert 1 <= int(full.headers["retry-after"]) <= 60
    assert [answer.status_code for answer in answers] == [499, 499]
    assert (await run_row(node, run_id)).status == "cancelled"


def test_a_run_that_has_no_place_is_turned_away_before_it_is_read(node: NodeProcess):
    where = urlsplit(node.url)
    head = (
        f"POST /v1/images/edits HTTP/1.1\r\nHost: {where.netloc}\r\nAuthorization: Bearer {TOKEN}\r\n"
        f"Content-Type: application/json\r\nContent-Length: 10000000\r\n{RUN_ID_HEADER}: run_1\r\n{PLACES_HEADER}: 0\r\n\r\n"
    )
    with socket.create_connection((where.hostname or "", where.port or 80), timeout=60) as connection:
        connection.sendall(head.encode())
        answer = HTTPResponse(connection)
        answer.begin()
        told = json.loads(answer.read())

    assert (answer.status, told["error"]["code"]) == (409, "node_busy")
    assert Holding.model_validate(told["holding"]) == Holding(phase=NodePhase.READY, jobs=[])


def test_metrics_are_open_and_count(node: NodeProcess):
    with node.http(key=None) as client:
        text = client.get("/metrics").text

    for name in (
        'aquatint_node_jobs{phase="queued"} 0.0',
        'aquatint_node_images_total{model="sd15"}',
        'aquatint_node_model_loads_total{model="sd15",outcome="succeeded"}',
        'aquatint_node_generation_seconds_count{model="sd15",phase="denoise"}',
        "aquatint_node_worker_restarts_total 0.0",
        'aquatint_node_device_memory_bytes{kind="total"}',
        'aquatint_node_http_requests_total{method="POST",route="/v1/images/generations",status="2xx"}',
    ):
        assert name in text


def test_unknown_paths_and_methods_are_envelopes(node: NodeProcess):
    with node.http() as client:
        assert client.post("/v1/chat/completions").json()["error"]["code"] == "unknown_url"
        assert client.get("/v1/images/generations").status_code == 405
