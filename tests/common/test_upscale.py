"""The field `upscale` in the forms clients send it, and what is wrong."""

from typing import Any

import orjson
import pytest

from common.errors import InvalidRequest
from common.images_api import Task, UpscaleAsk, read_json_request
from tests.common.test_uploads import picture, read


def read_json(upscale: Any) -> UpscaleAsk | None:
    asked = read_json_request(Task.GENERATION, orjson.dumps({"prompt": "x", "upscale": upscale}))
    assert read_json_request(Task.GENERATION, orjson.dumps(asked.to_json())).upscale == asked.upscale
    return asked.upscale


@pytest.mark.parametrize(
    ("upscale", "expected"),
    [
        ({"by": 1.5, "method": "x4", "strength": 0.25}, UpscaleAsk(1.5, "x4", 0.25)),
        ({}, UpscaleAsk(2.0, "latent", None)),
        ({"by": 2, "strength": None}, UpscaleAsk(2.0)),
        (3, UpscaleAsk(3.0)),
        (None, None),
    ],
)
def test_it_is_an_object_or_the_factor_alone(upscale: Any, expected: UpscaleAsk | None):
    assert read_json(upscale) == expected


@pytest.mark.parametrize(
    ("upscale", "param", "code"),
    [
        ("2", "upscale", "invalid_type"),
        (True, "upscale", "invalid_type"),
        ([2], "upscale", "invalid_type"),
        (5, "upscale.by", "decimal_above_max_value"),
        ({"by": 0.5}, "upscale.by", "decimal_below_min_value"),
        ({"method": ""}, "upscale.method", "empty_string"),
        ({"strength": 2}, "upscale.strength", "decimal_above_max_value"),
        ({"path": "/x"}, "upscale", "invalid_value"),
    ],
)
def test_what_is_wrong_is_named(upscale: Any, param: str, code: str):
    with pytest.raises(InvalidRequest) as told:
        read_json(upscale)

    assert (told.value.param, told.value.code) == (param, code)


async def test_forms_hold_it_as_json_or_flattened():
    whole = await read(Task.EDIT, [("prompt", "x"), ("image", picture()), ("upscale", '{"by": 1.5}')])
    flat = await read(Task.EDIT, [("prompt", "x"), ("image", picture()), ("upscale[by]", "1.5"), ("upscale[method]", "x4")])

    assert whole.upscale == UpscaleAsk(1.5)
    assert flat.upscale == UpscaleAsk(1.5, "x4")
