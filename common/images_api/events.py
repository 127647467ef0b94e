"""Server-sent events of a streamed answer, byte for byte as OpenAI's SDKs read them."""

from typing import Any

import orjson
import pybase64

from common.errors import AquatintError, NodeFailed
from common.images_api.request import Task

HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}
KEEP_ALIVE = b": keep-alive\n\n"
KEEP_ALIVE_EVERY_S = 15.0

_NAMES = {Task.GENERATION: "image_generation", Task.EDIT: "image_edit", Task.VARIATION: "image_edit"}

_PICTURE = tuple({f"event: {name}.completed\n".encode() for name in _NAMES.values()})


def partial_image(task: Task, content: bytes, index: int, head: dict[str, Any]) -> bytes:
    """A preview. head: created_at, size, quality, background, output_format; and, of ours, written_at: when it was
    written, in unix seconds with a fraction, which is how `aquatint bench stream` knows what the way to the client cost."""
    return _event(f"{_NAMES[task]}.partial_image", {"partial_image_index": index} | head, content)


def completed(task: Task, content: bytes, head: dict[str, Any]) -> bytes:
    """The picture. head: created_at, size, quality, background, output_format, usage, and this server's own keys."""
    return _event(f"{_NAMES[task]}.completed", head, content)


def is_picture(event: bytes | bytearray) -> bool:
    """Whether an event, or the beginning of one, is the picture."""
    return event.startswith(_PICTURE)


def completed_head(answer: dict[str, Any], seed: int, asset_id: str) -> dict[str, Any]:
    """The head of the last event, out of that of an ordinary answer."""
    rest = {name: value for name, value in answer.items() if name != "created"}
    return {"created_at": answer.get("created", 0)} | rest | {"seed": seed, "asset_id": asset_id}


def failed(error: AquatintError) -> bytes:
    """An error after the stream began. Nested, as a flat one is silently taken for an ordinary event by the Python SDK."""
    body = {"type": "error", "error": {**error.envelope()["error"]}}
    return b"event: error\ndata: " + orjson.dumps(body) + b"\n\n"


def refused(body: bytes) -> bytes:
    """An error answer of a node, whose body is the envelope, as the last event."""
    try:
        error = orjson.loads(body)["error"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return failed(NodeFailed("The node answered something that cannot be understood."))
    return b"event: error\ndata: " + orjson.dumps({"type": "error", "error": error}) + b"\n\n"


def _event(name: str, fields: dict[str, Any], content: bytes) -> bytes:
    # Base64 needs no escaping: it is joined in rather than serialised.
    rest = orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)[1:]
    start = f'event: {name}\ndata: {{"type":"{name}","b64_json":"'.encode()
    return start + pybase64.b64encode(content) + b'",' + rest + b"\n\n"
