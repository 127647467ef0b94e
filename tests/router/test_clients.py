"""What clients in the field really send, as recorded from their sources, and what each of them needs to find in the answer."""

import base64
import io
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image

from tests.router.conftest import USER_KEY, MakeHouse

DEMO = "aquatint-demo"


def png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (32, 32), "teal").save(out, "PNG")
    return out.getvalue()


def data_url() -> str:
    return "data:image/png;base64," + base64.b64encode(png()).decode()


@dataclass(frozen=True)
class Sent:
    """One client's request. needs: `b64_json` or `url`, whichever the client reads."""

    client: str
    path: str
    needs: str
    json: dict[str, Any] | None = None
    data: dict[str, Any] | None = None
    files: list[tuple[str, tuple[str, bytes, str]]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{self.client} {self.path.partition('?')[0].rpartition('/')[2]}"


GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
IMAGE = ("image", ("upload", png(), "application/octet-stream"))
SENT = [
    Sent(
        "Open WebUI",
        f"{GENERATIONS}?api-version=2025-04-01-preview",
        "b64_json",
        json={"model": "dall-e-2", "prompt": "a cat", "n": 1, "size": "512x512", "response_format": "b64_json"},
        headers={"X-OpenWebUI-User-Name": "someone"},
    ),
    Sent("Open WebUI", EDITS, "b64_json", data={"model": "gpt-image-1", "prompt": "x", "n": "1", "size": "512x512"}, files=[
        ("image[]", ("0b6c.png", png(), "image/png")),
    ]),
    Sent("LibreChat tool A", GENERATIONS, "b64_json", json={
        "model": "gpt-image-1", "prompt": "x", "background": "auto", "output_format": "png", "quality": "auto", "size": "auto",
        "n": 1, "output_compression": 100,
    }, headers={"api-key": USER_KEY, "authorization": ""}),
    Sent("LibreChat tool B", GENERATIONS, "url", json={
        "model": "dall-e-3", "prompt": "x", "quality": "hd", "style": "vivid", "n": 1, "size": "1024x1024",
    }),
    Sent("LangChain Python", GENERATIONS, "url", json={"prompt": "x", "n": 1, "size": "1024x1024", "model": "dall-e-2"}),
    Sent("LangChain JS", GENERATIONS, "url", json={
        "model": "dall-e-3", "prompt": "x", "n": 1, "size": "1024x1024", "response_format": "url", "style": "vivid",
        "quality": "standard", "user": "me",
    }),
    Sent("LlamaIndex", GENERATIONS, "url", json={
        "prompt": "x", "model": "dall-e-3", "n": 1, "size": "1024x1024", "quality": "standard", "style": "vivid",
        "response_format": "url",
    }),
    Sent("n8n", EDITS, "b64_json", data={"model": "gpt-image-1", "prompt": "x", "output_compression": "100"}, files=[
        ("image[]", ("file.png", png(), "image/png")),
    ], ignored=frozenset()),
    Sent("Vercel AI SDK", GENERATIONS, "b64_json", json={
        "model": "gpt-image-2", "prompt": "x", "n": 1, "size": "512x512",
    }),
    Sent("Vercel AI SDK", EDITS, "b64_json", data={"model": "gpt-image-1", "prompt": "x", "n": "1"}, files=[
        ("image", ("blob", png(), "image/png")), ("mask", ("blob", png(), "image/png")),
    ]),
    Sent("Vercel openai-compatible", GENERATIONS, "b64_json", json={
        "model": DEMO, "prompt": "x", "n": 1, "negative_prompt": "fog", "seed": 7,
    }),
    Sent("LiteLLM", GENERATIONS, "b64_json", json={
        "model": DEMO, "prompt": "x", "n": 1, "extra_headers": {"a": "b"},
    }, ignored=frozenset({"extra_headers"})),
    Sent("LiteLLM", EDITS, "b64_json", data={"model": DEMO, "prompt": "x"}, files=[
        ("image[]", ("C:\\Users\\me\\secret\\a.png", png(), "image/png")),
    ]),
    Sent("Spring AI", GENERATIONS, "url", json={
        "model": "dall-e-3", "prompt": "x", "n": 1, "size_width": 512, "size_height": 512, "response_format": "url",
    }, ignored=frozenset({"size_width", "size_height"})),
    Sent("Codex", EDITS, "b64_json", json={
        "model": "gpt-image-1", "prompt": "x", "images": [{"image_url": data_url()}], "size": "auto", "moderation": "auto",
    }),
    Sent("llmlb as a proxy", GENERATIONS, "url", json={
        "model": DEMO, "prompt": "x", "n": 1, "size": "512x512", "quality": "standard", "style": "vivid",
        "response_format": "url", "negative_prompt": "fog", "seed": 5, "steps": 4,
    }),
    Sent("without /v1", "/images/generations", "b64_json", json={"model": DEMO, "prompt": "x"}),
    Sent("Python SDK", "/v1/images/variations", "b64_json", data={"n": "1", "size": "256x256"}, files=[IMAGE]),
]  # fmt: skip


@pytest.mark.parametrize("sent", SENT, ids=str)
async def test_a_client_of_the_field_finds_what_it_looks_for(make_house: MakeHouse, sent: Sent):
    house = await make_house("a", models={"a": [DEMO]})

    reply = await house.client.post(sent.path, json=sent.json, data=sent.data, files=sent.files or None, headers=sent.headers)

    assert reply.status_code == 200, reply.text
    assert reply.headers["content-type"] == "application/json"
    for item in reply.json()["data"]:
        assert ({"b64_json", "url"} & set(item)) == {sent.needs}
        if sent.needs == "url":
            await _can_be_fetched_by_anyone(item["url"], house.url)
        else:
            Image.open(io.BytesIO(base64.b64decode(item["b64_json"]))).verify()
    told = set(filter(None, reply.headers.get("x-ignored-params", "").split(",")))
    assert told == sent.ignored


async def _can_be_fetched_by_anyone(url: str, base: str) -> None:
    """Same origin as the client called, the ending in the path, no key needed, an image by its type, HEAD too."""
    assert url.startswith(base + "/")
    assert urlsplit(url).path.endswith((".png", ".jpg", ".webp"))
    async with httpx.AsyncClient() as anyone:
        got, head = await anyone.get(url), await anyone.head(url)
        sent_along = await anyone.get(url, headers={"authorization": "Bearer something-else"})
    assert (got.status_code, head.status_code, sent_along.status_code) == (200, 200, 200)
    assert got.headers["content-type"] == "image/png"
    Image.open(io.BytesIO(got.content)).verify()


async def test_sillytavern_finds_the_routes_it_pings(make_house: MakeHouse):
    house = await make_house("a")

    for path in (GENERATIONS, EDITS, "/v1/images/variations"):
        reply = await house.client.options(path)
        assert reply.status_code == 204
        assert "POST" in reply.headers["allow"]
