"""What clients send, and what they are told when it is wrong (the rows of OpenAI's own answers)."""

from typing import Any

import orjson
import pytest

from common.errors import AquatintError
from common.images_api import ImageRequest, OutputFormat, Quality, ResponseFormat, Size, Task, read_json_request
from common.images_api.fields import FIELDS
from common.images_api.request import MAX_SEED


def read(**fields: Any) -> ImageRequest:
    return read_json_request(Task.GENERATION, orjson.dumps(fields))


def refused(body: bytes) -> AquatintError:
    with pytest.raises(AquatintError) as caught:
        read_json_request(Task.GENERATION, body)
    return caught.value


WRONG = [
    ({}, "prompt", "missing_required_parameter"),
    ({"prompt": None}, "prompt", "invalid_type"),
    ({"prompt": 123}, "prompt", "invalid_type"),
    ({"prompt": ""}, "prompt", "empty_string"),
    ({"prompt": " \n"}, "prompt", "empty_string"),
    ({"prompt": "x" * 32_001}, "prompt", "string_above_max_length"),
    ({"prompt": "a\x00b"}, "prompt", "invalid_value"),
    ({"prompt": "x", "n": 0}, "n", "integer_below_min_value"),
    ({"prompt": "x", "n": 11}, "n", "integer_above_max_value"),
    ({"prompt": "x", "n": 1.5}, "n", "invalid_type"),
    ({"prompt": "x", "n": 2.0}, "n", "invalid_type"),
    ({"prompt": "x", "n": "2"}, "n", "invalid_type"),
    ({"prompt": "x", "n": True}, "n", "invalid_type"),
    ({"prompt": "x", "size": "bogus"}, "size", "invalid_value"),
    ({"prompt": "x", "size": "0x0"}, "size", "invalid_value"),
    ({"prompt": "x", "size": "1000"}, "size", "invalid_value"),
    ({"prompt": "x", "size": "1024×1024"}, "size", "invalid_value"),
    ({"prompt": "x", "size": "１０２４x１０２４"}, "size", "invalid_value"),
    ({"prompt": "x", "size": "512x512\n"}, "size", "invalid_value"),
    ({"prompt": "x", "size": "99999x8"}, "size", "invalid_value"),
    ({"prompt": "x", "size": 512}, "size", "invalid_type"),
    ({"prompt": "x", "width": 512}, "height", "invalid_value"),
    ({"prompt": "x", "quality": "ultra"}, "quality", "invalid_value"),
    ({"prompt": "x", "style": "loud"}, "style", "invalid_value"),
    ({"prompt": "x", "background": "transparent"}, "background", "invalid_value"),
    ({"prompt": "x", "output_format": "gif"}, "output_format", "invalid_value"),
    ({"prompt": "x", "output_compression": 101}, "output_compression", "integer_above_max_value"),
    ({"prompt": "x", "response_format": "png"}, "response_format", "invalid_value"),
    ({"prompt": "x", "stream": "yes"}, "stream", "invalid_type"),
    ({"prompt": "x", "stream": True, "n": 2}, "n", "unsupported_value"),
    ({"prompt": "x", "loras": [{"name": "x", "scale": 4.5}]}, "loras", "decimal_above_max_value"),
    ({"prompt": "x", "loras": [{"name": "x", "path": "/x.safetensors"}]}, "loras", "invalid_value"),
    ({"prompt": "x", "loras": [{"name": "x", "scale": True}]}, "loras", "invalid_type"),
    ({"prompt": "x", "loras": [{"name": "x", "trigger": 1}]}, "loras", "invalid_type"),
    ({"prompt": "x", "loras": [{"scale": 1}]}, "loras", "invalid_type"),
    ({"prompt": "x", "loras": [5]}, "loras", "invalid_type"),
    ({"prompt": "x", "loras": [{"name": " "}]}, "loras", "invalid_value"),
    ({"prompt": "x", "loras": [{"name": "a\nb"}]}, "loras", "invalid_value"),
    ({"prompt": "x", "lora": ["x"] * 9}, "lora", "array_above_max_length"),
    ({"prompt": "x", "frame_count": 9}, "frame_count", "unsupported_parameter"),
    ({"prompt": "x", "svg": {"model": "x"}}, "svg", "unsupported_parameter"),
    ({"prompt": "x", "complexity": "odd"}, "complexity", "invalid_value"),
    ({"prompt": "x", "extra_params": "{}"}, "extra_params", "invalid_type"),
    ({"prompt": "x", "embed_metadata": "no"}, "embed_metadata", "invalid_type"),
    ({"prompt": "x", "partial_images": 4}, "partial_images", "integer_above_max_value"),
    ({"prompt": "x", "seed": MAX_SEED + 1}, "seed", "integer_above_max_value"),
    ({"prompt": "x", "seed": MAX_SEED, "n": 2}, "seed", "integer_above_max_value"),
    ({"prompt": "x", "guidance_scale": "7"}, "guidance_scale", "invalid_type"),
    ({"prompt": "x", "steps": 0}, "steps", "integer_below_min_value"),
    ({"prompt": "x", "model": 5}, "model", "invalid_type"),
]


@pytest.mark.parametrize(("fields", "param", "code"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_value_is_answered_400_with_the_field_it_is_in(fields: dict[str, Any], param: str, code: str):
    error = refused(orjson.dumps(fields))

    assert (error.status, error.param, error.code) == (400, param, code)


BROKEN = [
    b"",
    b"{",
    b"[]",
    b'"prompt"',
    b"null",
    b'{"prompt": NaN}',
    b'{"prompt": "x", "guidance_scale": Infinity}',
    b'{"prompt": "x", "guidance_scale": 1e400}',
    b'{"prompt": "\\ud800"}',
    b'{"prompt": "\xff"}',
    b"[" * 100_000,
    b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
]


@pytest.mark.parametrize("body", BROKEN, ids=lambda body: repr(body[:24]))
def test_what_is_not_json_is_answered_400_without_being_quoted(body: bytes):
    error = refused(body)

    assert (error.status, error.code) == (400, None)
    assert "xff" not in error.message


def test_the_order_of_checks_is_that_of_openai():
    assert refused(orjson.dumps({"model": 5, "prompt": "", "n": 0})).param == "model"
    assert refused(orjson.dumps({"prompt": "", "n": 0, "size": "x"})).param == "prompt"
    assert refused(orjson.dumps({"prompt": "x", "n": 0, "size": "x"})).param == "n"


def test_null_means_not_given():
    assert read(prompt="x", n=None, size=None, seed=None, quality=None) == read(prompt="x")


def test_unknown_keys_are_ignored_and_named_as_a_header_can_hold_them():
    asked = read(prompt="x", size_width=5, extra_headers={"a": 1}, **{"naïve,key": 1})

    assert asked.ignored == ("size_width", "extra_headers", "na?ve?key")


@pytest.mark.parametrize("prompt", ["白い猫", "e\u0301 🦊 \u202e", "x" * 32_000, "<lora:../../etc:1>"])
def test_a_prompt_arrives_as_it_was_sent(prompt: str):
    assert read(prompt=prompt).prompt == prompt


def test_old_quality_names_are_read_as_todays():
    assert read(prompt="x", quality="hd").quality is Quality.HIGH
    assert read(prompt="x", quality="standard").quality is Quality.MEDIUM


def test_width_and_height_win_over_size():
    assert read(prompt="x", size="512x512", width=640, height=384).size == Size(640, 384)


def test_other_servers_names_for_steps_and_guidance_are_understood():
    asked = read(prompt="x", steps=7, cfg_scale=3)

    assert (asked.num_inference_steps, asked.guidance_scale) == (7, 3.0)


@pytest.mark.parametrize(
    ("model", "wanted", "expected"),
    [
        (None, None, ResponseFormat.B64_JSON),
        ("gpt-image-2", None, ResponseFormat.B64_JSON),
        ("dall-e-3", None, ResponseFormat.URL),
        ("dall-e-3", "b64_json", ResponseFormat.B64_JSON),
        ("sdxl", "url", ResponseFormat.URL),
    ],
)
def test_old_dall_e_clients_get_urls_unless_they_say_otherwise(model: str | None, wanted: str | None, expected: ResponseFormat):
    assert read(prompt="x", model=model, response_format=wanted).effective_response_format is expected


def test_the_canonical_form_reads_back_as_the_same_request():
    asked = read(prompt="猫", n=3, size="640x384", quality="hd", output_format="jpeg", seed=5, steps=9, guidance_scale=2.5)

    assert read_json_request(Task.GENERATION, orjson.dumps(asked.to_json())) == asked


def test_a_drawn_seed_leaves_room_for_every_image():
    for _ in range(100):
        seed = read(prompt="x", n=10).with_seed().seed
        assert seed is not None
        assert 0 <= seed <= MAX_SEED - 9
    assert read(prompt="x", seed=7).with_seed().seed == 7


def test_a_field_under_two_names_must_be_right_under_both_and_the_first_counts():
    assert read(prompt="x", num_inference_steps=7, steps=9).num_inference_steps == 7
    assert refused(orjson.dumps({"prompt": "x", "num_inference_steps": 7, "steps": "9"})).param == "steps"


def test_no_two_fields_share_a_name():
    names = [name for field in FIELDS for name in field.names]

    assert len(names) == len(set(names))


def test_the_output_format_knows_its_media_type_and_ending():
    assert (OutputFormat.JPEG.media_type, OutputFormat.JPEG.extension) == ("image/jpeg", "jpg")


@pytest.mark.parametrize(
    ("given", "exactly"),
    [({}, False), ({"seed": 7}, True), ({"seed": -1}, False), ({"exact": True}, True), ({"seed": 7, "exact": False}, False)],
)
def test_who_names_a_seed_gets_it_exactly_unless_the_request_says_otherwise(given: dict[str, Any], exactly: bool):
    request = read(prompt="x", **given)

    assert request.made_exactly is exactly
    # As a router sends it on, which draws a seed where there is none.
    sent = read_json_request(Task.GENERATION, orjson.dumps(request.with_seed().to_json()))
    assert (sent.made_exactly, sent.seed is None) == (exactly, False)
