"""The image routes in the OpenAPI document, made from the table of fields that validation reads."""

from typing import Any

from common.images_api.fields import FIELDS
from common.images_api.request import OutputFormat, Task

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_ANSWER = {
    "type": "object",
    "required": ["created", "data"],
    "properties": {
        "created": {"type": "integer"},
        "id": {"type": "string", "description": "The run."},
        "model": {"type": "string"},
        "size": {"type": "string"},
        "quality": {"type": "string"},
        "background": {"type": "string"},
        "output_format": {"type": "string"},
        "parameters": {"type": "object"},
        "timings": {"type": "object"},
        "usage": {"type": "object"},
        "data": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["seed", "asset_id"],
                "properties": {
                    "b64_json": {"type": "string"},
                    "url": {"type": "string"},
                    "seed": {"type": "integer"},
                    "asset_id": {"type": "string"},
                },
            },
        },
    },
}
_ESTIMATE: dict[str, Any] = {
    "type": "object",
    "required": ["object", "model", "task", "fits", "eta_s", "load_s", "gpu_seconds", "queued"],
    "properties": {
        "object": {"const": "estimate"},
        "model": {"type": "string"},
        "task": {"type": "string"},
        "fits": {"type": "boolean"},
        "eta_s": {"type": ["number", "null"]},
        "load_s": {"type": ["number", "null"]},
        "gpu_seconds": {"type": ["number", "null"]},
        "queued": {"type": "integer"},
        "node": {"type": ["string", "null"]},
        "turned_away": {"type": "object"},
    },
}
"""What a `dry_run` is answered."""
_EVENT = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {"event": {"type": "string"}, "data": {"type": "string", "contentMediaType": "application/json"}},
}
"""One event of a stream. `itemSchema` is OpenAPI 3.2's word; readers of 3.1 pass over it."""
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"description": "The request is at fault.", "content": {"application/json": {"schema": _ERROR}}},
    "5XX": {"description": "The server is at fault.", "content": {"application/json": {"schema": _ERROR}}},
}
"""What every route may answer: OpenAI's envelope."""
_STATUSES = {
    "400": "The request is wrong; `param` says where.",
    "401": "No key, or not one of ours.",
    "409": "The first request with this idempotency key has no answer yet; see `Retry-After`.",
    "413": "The body is too large.",
    "429": "The queue is full; see `Retry-After`.",
    "500": "The engine failed in a way that another try would repeat.",
    "502": "Every node that was tried failed.",
    "503": "No node can take it now, or the catalog cannot be reached; see `Retry-After`.",
    "504": "It did not end in time.",
}
_HEADERS: list[dict[str, Any]] = [
    {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "A name for this request: sent again under it, it is answered as before and makes nothing.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
    },
    {
        "name": "Prefer",
        "in": "header",
        "description": "`respond-async`: the run is answered at once, and its pictures can be had from it later. "
        "Other preferences are passed over.",
        "schema": {"type": "string"},
    },
]


def operation(task: Task) -> dict[str, Any]:
    """`openapi_extra` of one image route: its bodies and its answers."""
    bodies: dict[str, Any] = {}
    if task is not Task.VARIATION:
        bodies["application/json"] = {"schema": _body(task, files=_json_files(task))}
    files = _form_files(task)
    types = {"contentType": ", ".join(each.media_type for each in OutputFormat)}
    bodies["multipart/form-data"] = {
        "schema": _body(task, files=files, form=True),
        "encoding": dict.fromkeys(files, types),
    }
    picture: dict[str, Any] = {"application/json": {"schema": {"anyOf": [_ANSWER, _ESTIMATE]}}}
    if task is not Task.VARIATION:
        picture["text/event-stream"] = {"itemSchema": _EVENT}
    answers: dict[str, Any] = {"200": {"description": "The pictures.", "content": picture}}
    accepted = {"Location": {"description": "The run.", "schema": {"type": "string"}}}
    run = {"application/json": {"schema": {"type": "object", "required": ["id", "object", "status"]}}}
    answers["202"] = {"description": "The run, with `Prefer: respond-async`.", "headers": accepted, "content": run}
    for status, meaning in _STATUSES.items():
        answers[status] = {"description": meaning, "content": {"application/json": {"schema": _ERROR}}}
    return {"parameters": _HEADERS, "requestBody": {"required": True, "content": bodies}, "responses": answers}


def _body(task: Task, *, files: dict[str, Any], form: bool = False) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for field in FIELDS:
        schema = field.kind.schema()
        if task not in field.tasks or schema == {"type": "null"}:
            continue
        for name in field.names:
            # null is "not given" in JSON; a form has no null.
            taken = schema if form or field.name == "prompt" else _nullable(schema)
            properties[name] = taken | {"description": field.meaning}
    needed = [name for name in ("prompt", "image", "images") if name in properties or name in files]
    together = {"width": ["height"], "height": ["width"]}
    return {"type": "object", "properties": properties | files, "required": needed, "dependentRequired": together}


def _nullable(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _json_files(task: Task) -> dict[str, Any]:
    if task is Task.GENERATION:
        return {}
    picture = {
        "type": "object",
        "required": ["image_url"],
        "properties": {
            "image_url": {
                "type": "string",
                "format": "uri",
                "description": "A base64 data URL of a PNG, JPEG or WebP file, or a URL of a listed origin.",
            }
        },
    }
    return {"images": {"type": "array", "minItems": 1, "maxItems": 16, "items": picture}, "mask": _nullable(picture)}


def _form_files(task: Task) -> dict[str, Any]:
    file = {"type": "string", "contentMediaType": "application/octet-stream"}
    control = {"control_image": file | {"description": "The picture of the first control that has none of its own."}}
    if task is Task.GENERATION:
        return control
    return {"image": file} | ({"mask": file} if task is Task.EDIT else {}) | control
