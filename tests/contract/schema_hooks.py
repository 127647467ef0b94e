"""What a schema cannot say, for schemathesis: pictures, names of models, what no test may take away from under itself.

Loaded by its command line (see test_schemathesis.py). Only values that are right as they are get replaced, so every wrong
one is sent as it was made.
"""

import base64
import contextlib
import io
import itertools
import re
from typing import Any

import schemathesis
from hypothesis import strategies as st
from PIL import Image

from common.errors import InvalidRequest
from common.images_api.fields import FIELDS
from router.api.admin_nodes import ADDRESS
from tests.contract.server import MODEL

SIDES = ("width", "height")
IDEMPOTENCY = "Idempotency-Key"
NUMBERS = itertools.count()
LORAS = next(field for field in FIELDS if field.name == "loras")


def _picture(media_type: str) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (32, 32)).save(out, media_type.rpartition("/")[2].upper())
    return out.getvalue()


# An image is of its type by its bytes, and a mask is as large as the image.
for _type in ("image/png", "image/jpeg", "image/webp"):
    schemathesis.openapi.media_type(_type, st.just(_picture(_type)))
# This server has no origin listed from which it would fetch pictures.
PICTURE_URL = "data:image/png;base64," + base64.b64encode(_picture("image/png")).decode()
schemathesis.openapi.format("uri", st.just(PICTURE_URL))


@schemathesis.hook
def map_case(context: schemathesis.HookContext, case: schemathesis.Case) -> schemathesis.Case:
    """Values that a schema takes for right and that are wrong at this server, and rules between two fields."""
    fields = _fields(case)
    if fields is not None:
        if "/images/" in case.operation.path:
            _make_possible(fields)
            if _kept(case.headers.get(IDEMPOTENCY)):
                # A key stands for one request, and each case is another.
                case.headers[IDEMPOTENCY] = f"key-{next(NUMBERS)}"
        if isinstance(fields.get("url"), str) and re.match(ADDRESS, fields["url"]):
            # A port that nobody listens on: nodes are looked at when they are added.
            fields["url"] = "http://127.0.0.1:9"
    return case


def _fields(case: schemathesis.Case) -> dict[str, Any] | None:
    fields = getattr(case.body, "body", case.body)
    return fields if isinstance(fields, dict) else None


def _make_possible(fields: dict[str, Any]) -> None:
    # To JSON Schema 2.0 is an integer; to OpenAI, and so to us, it is a decimal number.
    fields.update({name: int(value) for name, value in fields.items() if isinstance(value, float) and value.is_integer()})
    model = fields.get("model")
    if isinstance(model, str) and model.strip() and len(model) <= 256:
        fields["model"] = MODEL
    webhook_url = fields.get("webhook_url")
    if isinstance(webhook_url, str) and webhook_url.strip() and len(webhook_url) <= 2048:
        # This server has no origin listed that it would call.
        del fields["webhook_url"]
    # How large a picture may be is the model's affair.
    if isinstance(fields.get("size"), str) and re.fullmatch(r"[1-9][0-9]{0,4}x[1-9][0-9]{0,4}", fields["size"]):
        fields["size"] = "64x64"
    for name in ("loras", "lora"):
        # Which LoRAs there are is known here alone: those that are rightly named are left out.
        with contextlib.suppress(InvalidRequest):
            sent = fields.get(name)
            objects = isinstance(sent, list) and all(isinstance(item, dict) for item in sent)
            if objects and LORAS.kind.read(name, sent):
                fields[name] = []
    # Which file belongs to which control, and that a control begins before it ends, is no affair of a schema.
    fields.pop("control_image", None)
    for item in fields["control"] if isinstance(fields.get("control"), list) else ():
        if isinstance(item, dict) and all(_number(item.get(name)) for name in ("start", "end")):
            item.update(start=0, end=1)
        if isinstance(item, dict) and "image" not in item:
            item["image"] = PICTURE_URL
    # A schema ties their presence; a null is not given.
    sides = [fields.get(name) for name in SIDES]
    if any(_integer(side, 1, 16384) for side in sides) and all(side is None or _integer(side, 1, 16384) for side in sides):
        fields.update(dict.fromkeys(SIDES, 64))
    # A stream is of one picture; picture i is made from seed + i, which ends at the largest seed.
    if fields.get("stream") in (True, "true") and _integer(fields.get("n"), 1, 10):
        fields["n"] = 1
    if _integer(fields.get("seed"), 2**32 - 10, 2**32 - 1):
        fields["seed"] = 7


def _kept(name: Any) -> bool:
    return isinstance(name, str) and re.fullmatch(r"[!-~]{1,255}", name) is not None


def _number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1)


def _integer(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


@schemathesis.hook
def filter_case(context: schemathesis.HookContext, case: schemathesis.Case) -> bool:
    """What is not sent, and why."""
    # A node and keys that all other requests need: taking them away would let the rest pass for nothing.
    taken = case.path_parameters.get("name") in ("a", "admin", "user") if case.path_parameters else False
    if taken and (case.method.upper() == "DELETE" or case.operation.path.endswith(("/drain", "/limits"))):
        return False
    # In forms with files schemathesis takes an empty prompt for a right one, against the schema's `minLength`.
    form = (case.media_type or "").startswith("multipart/")
    return not (form and (_fields(case) or {}).get("prompt") == "")
