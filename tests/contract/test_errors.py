"""Every row of OpenAI's own answers to what is wrong, as the router gives them over a socket.

Types, params and codes are OpenAI's, and so are the words, with this server's own bounds in them. Where this server differs
by decision, the row says why.
"""

import asyncio
import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.contract.checking import MODEL, png
from tests.contract.programs import Server
from tests.contract.server import MAX_QUEUED

GENERATIONS, EDITS, VARIATIONS = "/v1/images/generations", "/v1/images/edits", "/v1/images/variations"
REQUEST, PICTURE = "invalid_request_error", "image_generation_user_error"
URL = {"image_url": "data:image/png;base64," + base64.b64encode(png()).decode()}
File = tuple[str, tuple[str, bytes, str]]
IMAGE: File = ("image", ("a.png", png(), "image/png"))


@dataclass(frozen=True)
class Row:
    """What is sent, and what must come back; `message` in full."""

    name: str
    param: str | None
    code: str | None
    message: str
    json: Any = None
    form: dict[str, str] | None = None
    files: list[File] = field(default_factory=list)
    content: bytes | None = None
    method: str = "POST"
    path: str = GENERATIONS
    headers: dict[str, str] = field(default_factory=dict)
    type: str = REQUEST
    status: int = 400

    def __str__(self) -> str:
        return self.name


def asked(**fields: Any) -> dict[str, Any]:
    """A generation that is right but for these."""
    return {"model": MODEL, "prompt": "a cat"} | fields


def type_of(name: str, expected: str, got: str) -> str:
    """OpenAI's words for a value of the wrong type."""
    return f"Invalid type for '{name}': expected {expected}, but got {got} instead."


def outside(name: str, side: str, rule: str, got: int) -> str:
    """OpenAI's words for an integer out of bounds."""
    return f"Invalid '{name}': integer {side} value. Expected a value {rule}, but got {got} instead."


EMPTY = "Invalid 'prompt': empty string. Expected a string with minimum length 1, but got an empty string instead."
LONG = (
    "Invalid 'prompt': string too long. Expected a string with maximum length 32000, "
    "but got a string with length 32001 instead."
)
SUPPORTED = "Supported file formats are 'image/jpeg', 'image/png', and 'image/webp'."
NUMBERS = ["partial_images", "output_compression"]

GENERATION_ROWS = [
    Row("prompt missing", "prompt", "missing_required_parameter", "Missing required parameter: 'prompt'.", {"model": MODEL}),
    Row("prompt empty", "prompt", "empty_string", EMPTY, asked(prompt="")),
    Row("prompt null", "prompt", "invalid_type", type_of("prompt", "a string", "null"), asked(prompt=None)),
    Row("prompt a number", "prompt", "invalid_type", type_of("prompt", "a string", "an integer"), asked(prompt=123)),
    Row("prompt too long", "prompt", "string_above_max_length", LONG, asked(prompt="x" * 32_001)),
    Row("model unknown", "model", "invalid_value", "The model 'X' does not exist.", asked(model="X"), type=PICTURE),
    Row("n 0", "n", "integer_below_min_value", outside("n", "below minimum", ">= 1", 0), asked(n=0)),
    Row("n 11", "n", "integer_above_max_value", outside("n", "above maximum", "<= 10", 11), asked(n=11)),
    Row("n 1.5", "n", "invalid_type", type_of("n", "an integer", "a decimal number"), asked(n=1.5)),
    Row("n a string", "n", "invalid_type", type_of("n", "an integer", "a string"), asked(n="2")),
    Row("n a boolean", "n", "invalid_type", type_of("n", "an integer", "a boolean"), asked(n=True)),
    # OpenAI's example is 1824x1024; ours is a size that every family makes.
    Row(
        "size bogus", "size", "invalid_value", "Invalid size 'bogus'. Expected WIDTHxHEIGHT, for example '1024x1024'.",
        asked(size="bogus"), type=PICTURE,
    ),
    Row(
        "quality ultra", "quality", "invalid_value",
        "Invalid value: 'ultra'. Supported values are: 'auto', 'low', 'medium', 'high', 'xhigh', 'max', 'standard', and 'hd'.",
        asked(quality="ultra"),
    ),
    Row("stream a string", "stream", "invalid_type", type_of("stream", "a boolean", "a string"), asked(stream="yes")),
    Row("stream of two", "n", "unsupported_value", "Streaming is only supported with n=1.", asked(stream=True, n=2)),
    Row(
        "partial_images 4", "partial_images", "integer_above_max_value",
        outside("partial_images", "above maximum", "<= 3", 4), asked(partial_images=4),
    ),
    Row(
        "output_compression 101", "output_compression", "integer_above_max_value",
        outside("output_compression", "above maximum", "<= 100", 101), asked(output_compression=101),
    ),
    Row(
        "background transparent", "background", "invalid_value", "Transparent background is not supported for this model.",
        asked(background="transparent"), type=PICTURE,
    ),
]  # fmt: skip

EDIT_ROWS = [
    Row(
        "n of a form", "n", "invalid_type",
        "Invalid type for 'n': expected an integer, but got a string value that could not be converted into an integer.",
        form={"prompt": "x", "n": "abc"}, files=[IMAGE], path=EDITS,
    ),
    Row(
        "edit without image", "image", "missing_required_parameter", "Missing required parameter: 'image'.",
        form={"prompt": "x"}, files=[("mask", ("m.png", png(), "image/png"))], path=EDITS,
    ),
    Row(
        "text where a file belongs", "image[0]", "invalid_type", type_of("image[0]", "a file", "a string"),
        form={"prompt": "x", "image": "a.png"}, files=[("mask", ("m.png", png(), "image/png"))], path=EDITS,
    ),
    Row(
        "undecodable image", None, "invalid_image_file",
        "Invalid image file or mode for image 1, please check your image file.",
        form={"prompt": "x"}, files=[("image", ("a.png", png()[:20], "image/png"))], path=EDITS, type=PICTURE,
    ),
    Row(
        "undecodable second image", None, "invalid_image_file",
        "Invalid image file or mode for image 2, please check your image file.",
        form={"prompt": "x"}, files=[("image[]", IMAGE[1]), ("image[]", ("b.png", png()[:20], "image/png"))], path=EDITS,
        type=PICTURE,
    ),
    Row(
        "wrong type by sniffing", "image", "unsupported_file_mimetype",
        f"Invalid file 'image': unsupported mimetype ('application/pdf'). {SUPPORTED}",
        form={"prompt": "x"}, files=[("image", ("a.png", b"%PDF-1.7", "image/png"))], path=EDITS,
    ),
    Row(
        "mask size differs", None, "invalid_mask_image_format",
        "Invalid mask image format - mask size does not match image size",
        form={"prompt": "x"}, files=[IMAGE, ("mask", ("m.png", png(8, 8), "image/png"))], path=EDITS, type=PICTURE,
    ),
    Row(
        "JSON edit with image", "image", "invalid_value",
        "Unknown parameter: 'image'. For application/json on /v1/images/edits, use 'images' (array).",
        {"prompt": "x", "image": URL}, path=EDITS,
    ),
    Row(
        "images empty", "images", "empty_array",
        "Invalid 'images': empty array. Expected an array with minimum length 1, but got an empty array instead.",
        {"prompt": "x", "images": []}, path=EDITS,
    ),
    Row(
        "images of strings", "images[0]", "invalid_type", type_of("images[0]", "an object", "a string"),
        {"prompt": "x", "images": ["x"]}, path=EDITS,
    ),
    Row(
        "two images of one variation", "image", "array_above_max_length",
        "Invalid 'image': too many images. Expected at most 1, but got 2 instead.",
        form={"n": "1"}, files=[("image[]", IMAGE[1])] * 2, path=VARIATIONS,
    ),
    Row(
        "a file of 4 MiB and a byte", "image", "image_too_large",
        "Invalid file 'image': larger than the limit of 4,194,304 bytes.",
        form={"prompt": "x"}, files=[("image", ("a.png", png() + bytes(4 * 1024 * 1024 - len(png()) + 1), "image/png"))],
        path=EDITS,
    ),
]  # fmt: skip

OTHER_ROWS = [
    Row(
        "bad JSON", None, None,
        "We could not parse the JSON body of your request. "
        "(The parser stopped at line 1, column 12: unexpected end of data.)",
        content=b'{"prompt": ',
    ),
    Row("no object", None, None, "The body of the request must be a JSON object, but it is an array.", []),
    Row(
        "body too large", None, "request_too_large", "The body of the request is larger than 1,048,576 bytes.",
        asked(prompt="x" * 1_048_576), status=413,
    ),
    Row(
        "no key", None, None,
        "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth "
        "(i.e. Authorization: Bearer YOUR_KEY).",
        asked(), headers={"authorization": ""}, status=401,
    ),
    # OpenAI shows a key's end as well; here four characters are enough to tell one's keys apart.
    Row(
        "wrong key", None, "invalid_api_key", "Incorrect API key provided: sk-w***.", asked(),
        headers={"authorization": "Bearer sk-wrong-0123456789abcdef"}, status=401,
    ),
    Row(
        "key without the scope", None, "insufficient_scope", "This route needs an API key with the scope 'admin'.",
        method="GET", path="/admin/nodes", status=403,
    ),
    Row(
        "model not found", "model", "model_not_found", "The model 'x' does not exist.",
        method="GET", path="/v1/models/x", status=404,
    ),
    Row(
        "unknown path", None, "unknown_url", "Unknown request URL: POST /v1/nowhere.", {}, path="/v1/nowhere", status=404,
    ),
    Row(
        "wrong method", None, "method_not_allowed", "Not allowed to GET on /v1/images/generations.",
        method="GET", status=405,
    ),
]  # fmt: skip
ROWS = [*GENERATION_ROWS, *EDIT_ROWS, *OTHER_ROWS]


def sent(client: httpx.Client, row: Row) -> httpx.Response:
    """The answer to a row."""
    return client.request(
        row.method, row.path, json=row.json, data=row.form, files=row.files or None, content=row.content, headers=row.headers
    )


def figure(client: httpx.Client, name: str) -> float:
    """The sum of one of the server's own figures."""
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_what_is_wrong_is_told_in_openais_words_and_reaches_no_node(client: httpx.Client, row: Row):
    before = figure(client, "aquatint_attempts_total")

    reply = sent(client, row)

    error = {"message": row.message, "type": row.type, "param": row.param, "code": row.code}
    assert (reply.status_code, reply.json()) == (row.status, {"error": error})
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"]
    assert figure(client, "aquatint_attempts_total") == before


def test_an_unknown_key_is_no_error_here(client: httpx.Client):
    """OpenAI refuses it; half of the clients in the field send some."""
    reply = client.post(GENERATIONS, json=asked(key=1))

    assert (reply.status_code, reply.headers["x-ignored-params"]) == (200, "key")


def test_with_two_faults_the_first_in_openais_order_is_told(client: httpx.Client):
    faults: dict[str, Any] = {"model": 5, "prompt": "", "images": [], "n": 0, "quality": "ultra"}
    right: dict[str, Any] = {"model": MODEL, "prompt": "x", "images": [URL], "n": 1}

    told = []
    for name in faults:
        told.append(client.post(EDITS, json=faults).json()["error"]["param"])
        faults[name] = right.get(name)

    assert told == ["model", "prompt", "images", "n", "quality"]


@pytest.fixture
def node(server: Server) -> Iterator[Any]:
    """Sets faults of the node, and takes them away in the end."""

    def fault(**wanted: Any) -> None:
        httpx.post(f"{server.node}/fake", json=wanted).raise_for_status()

    yield fault
    fault(mode="none", times=0, seconds=0.05)


def test_an_engine_that_would_fail_again_is_not_to_be_asked_again(client: httpx.Client, node: Any):
    node(mode="error_500", times=1)

    reply = client.post(GENERATIONS, json=asked())

    error = {"message": "the engine fell over", "type": "server_error", "param": None, "code": "engine_failed"}
    assert (reply.status_code, reply.json()["error"]) == (500, error)
    assert reply.headers["x-should-retry"] == "false"
    assert client.post(GENERATIONS, json=asked()).status_code == 200


def test_a_model_that_no_node_has_now_may_come_back(client: httpx.Client):
    reply = client.post(GENERATIONS, json=asked(model="away"))

    error = reply.json()["error"]
    assert (reply.status_code, error["type"], error["param"], error["code"]) == (503, "server_error", None, "no_capacity")
    assert error["message"].startswith("No node can take model 'away' now (a: ")
    assert "x-should-retry" not in reply.headers
    assert 1 <= int(reply.headers["retry-after"]) <= 60


async def test_a_full_queue_tells_how_long_to_wait(server: Server, client: httpx.Client, node: Any):
    node(mode="none", times=0, seconds=60)
    async with httpx.AsyncClient(base_url=server.url, headers=client.headers, timeout=30) as many:
        waiting = [asyncio.create_task(many.post(GENERATIONS, json=asked())) for _ in range(MAX_QUEUED + 2)]
        while await asyncio.to_thread(figure, client, "aquatint_queue_depth") < MAX_QUEUED:
            await asyncio.sleep(0.02)
        reply = await many.post(GENERATIONS, json=asked())
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    error = reply.json()["error"]
    assert (reply.status_code, error["type"], error["param"], error["code"]) == (429, "requests", None, "rate_limit_exceeded")
    wait_s = reply.headers["retry-after"]
    assert re.fullmatch(rf"Rate limit reached for .* Please try again in {wait_s}s\.", error["message"])
    assert 1 <= int(wait_s) <= 60
