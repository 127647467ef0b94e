"""Pictures that guide: the field in its forms, pictures as base64 and as files, and the way to a node."""

import base64
from typing import Any

import orjson
import pytest

from common.errors import AquatintError, InvalidRequest
from common.images_api import ControlAsk, ControlKind, ImageRequest, Preprocess, Task, encoded, read_json_request
from tests.common.test_uploads import LIMITS, picture, read

PICTURE = picture()
TEXT = base64.b64encode(PICTURE).decode()
URL = f"data:image/png;base64,{TEXT}"


def read_json(control: Any, task: Task = Task.GENERATION) -> ImageRequest:
    return read_json_request(task, orjson.dumps({"prompt": "x", "control": control}), LIMITS)


def test_an_item_is_read_with_everything_it_can_hold():
    (control,) = read_json(
        [{"name": "a b", "kind": "canny", "image": URL, "scale": 0.5, "start": 0.1, "end": 0.9, "preprocess": "canny"}]
    ).control

    assert control.image.content == PICTURE
    assert (control.image.width_px, control.image.height_px) == (40, 24)
    assert control == ControlAsk(control.image, "a b", ControlKind.CANNY, 0.5, 0.1, 0.9, Preprocess.CANNY)


@pytest.mark.parametrize("control", [{"kind": "depth", "image": TEXT}, [{"kind": "depth", "image": URL, "scale": None}]])
def test_one_alone_plain_base64_and_null_are_read(control: Any):
    (read,) = read_json(control).control

    assert (read.kind, read.scale, read.start, read.end, read.preprocess) == (ControlKind.DEPTH, 1.0, 0.0, 1.0, Preprocess.NONE)


GOOD = {"kind": "canny", "image": URL}


@pytest.mark.parametrize(
    ("control", "param", "code"),
    [
        ("canny", "control[0]", "invalid_type"),
        ([5], "control[0]", "invalid_type"),
        ([{"image": URL}], "control[0].kind", "missing_required_parameter"),
        ([{"kind": "canny"}], "control[0].image", "missing_required_parameter"),
        ([GOOD | {"kind": "tile"}], "control[0].kind", "invalid_value"),
        ([GOOD | {"image": 5}], "control[0].image", "invalid_type"),
        ([GOOD | {"image": "%%%"}], "control[0].image", "invalid_value"),
        ([GOOD | {"image": "https://example.com/a.png"}], "control[0].image", "invalid_value"),
        ([GOOD | {"image": "data:image/png,x"}], "control[0].image", "invalid_value"),
        ([GOOD | {"image": base64.b64encode(b"no picture").decode()}], "control[0].image", "unsupported_file_mimetype"),
        ([GOOD | {"image": "A" * 300_000}], "control[0].image", "image_too_large"),
        ([GOOD | {"scale": 2.5}], "control[0].scale", "decimal_above_max_value"),
        ([GOOD | {"start": 0.5, "end": 0.5}], "control[0].end", "invalid_value"),
        ([GOOD, GOOD | {"start": 1}], "control[1].end", "invalid_value"),
        ([GOOD | {"path": "/etc/passwd"}], "control[0]", "invalid_value"),
        ([GOOD] * 5, "control", "array_above_max_length"),
    ],
)
def test_what_is_wrong_is_named(control: Any, param: str | None, code: str):
    with pytest.raises(AquatintError) as told:
        read_json(control)

    assert (told.value.status, told.value.param, told.value.code) == (400, param, code)


async def test_in_a_form_pictures_are_files_or_texts():
    parts: list[tuple[str, bytes | str]] = [
        ("prompt", "x"),
        ("image", picture()),
        ("control", orjson.dumps([{"kind": "canny"}, {"kind": "depth", "image": TEXT}, {"name": "pose"}]).decode()),
        ("control_image[]", picture(8, 8)),
        ("control_image[]", picture(16, 8)),
    ]

    asked = await read(Task.EDIT, parts)

    assert [(each.kind, each.name, each.image.width_px) for each in asked.control] == [
        (ControlKind.CANNY, None, 8),
        (ControlKind.DEPTH, None, 40),
        (None, "pose", 16),
    ]


async def test_nested_parts_as_sdks_flatten_a_list_hold_a_picture_beyond_the_bound_of_other_texts():
    noise = "A" * 400_000
    parts: list[tuple[str, bytes | str]] = [("prompt", "x"), ("control[][kind]", "pose"), ("control[][scale]", "0.5")]

    (control,) = (await read(Task.GENERATION, [*parts, ("control[][image]", TEXT)])).control
    with pytest.raises(InvalidRequest, match="larger than the limit"):
        await read(Task.GENERATION, [*parts, ("control[][image]", noise)])
    with pytest.raises(InvalidRequest, match="maximum size"):
        await read(Task.GENERATION, [*parts, ("other", noise)])

    assert (control.kind, control.scale, control.image.content) == (ControlKind.POSE, 0.5, PICTURE)


async def test_a_file_that_no_control_waits_for_is_refused():
    with pytest.raises(InvalidRequest, match="more files than controls"):
        await read(Task.GENERATION, [("prompt", "x"), ("control_image", PICTURE)])


@pytest.mark.parametrize("task", [Task.GENERATION, Task.EDIT])
async def test_a_request_with_controls_survives_the_way_to_a_node(task: Task):
    given: list[tuple[str, bytes | str]] = [
        ("prompt", "x"),
        ("control", orjson.dumps([{"kind": "canny", "image": URL, "scale": 0.25}, {"name": "p", "image": TEXT}]).decode()),
    ]
    asked = await read(task, given if task is Task.GENERATION else [*given, ("image", picture())])
    pieces, content_type = encoded(asked)

    boundary = content_type.partition("boundary=")[2]
    again = await read_again(task, b"".join(pieces), boundary)

    assert [(each.to_json(), each.image.content) for each in again.control] == [
        (each.to_json(), each.image.content) for each in asked.control
    ]
    assert again.to_json() == asked.to_json()
    assert PICTURE not in orjson.dumps(asked.to_json())


async def read_again(task: Task, body: bytes, boundary: str) -> ImageRequest:
    from starlette.datastructures import Headers

    from common.images_api import parse_form, read_form_request

    async def stream() -> Any:
        yield body

    headers = Headers({"content-type": f"multipart/form-data; boundary={boundary}"})
    texts, files = await parse_form(headers, stream(), LIMITS)
    return read_form_request(task, texts, files, LIMITS)


async def test_pictures_are_part_of_what_makes_two_requests_the_same():
    from router.idempotency import fingerprint_of

    same = [await fingerprint_of(read_json([GOOD | {"image": image}]), is_async=False) for image in (URL, TEXT)]
    other = base64.b64encode(picture(41)).decode()

    assert same[0] == same[1] != await fingerprint_of(read_json([GOOD | {"image": other}]), is_async=False)
