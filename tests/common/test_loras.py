"""LoRAs as clients name them: the field in its many forms, and tags in the prompt."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import InvalidRequest
from common.images_api import LoraAsk, Task, asked_for, encoded, read_json_request
from common.images_api.loras import MAX_LORAS, tags_in


def read(**fields: Any) -> tuple[LoraAsk, ...]:
    return read_json_request(Task.GENERATION, orjson.dumps({"prompt": "x"} | fields)).loras


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"loras": [{"name": "ink", "scale": 0.8}]}, (LoraAsk("ink", 0.8),)),
        ({"lora": {"name": "ink"}}, (LoraAsk("ink", 1.0),)),
        ({"lora": "ink"}, (LoraAsk("ink"),)),
        ({"loras": ["ink", "detail"]}, (LoraAsk("ink"), LoraAsk("detail"))),
        ({"loras": [{"name": "ink", "weight": 2}]}, (LoraAsk("ink", 2.0),)),
        ({"loras": [{"name": "ink", "multiplier": -0.5}]}, (LoraAsk("ink", -0.5),)),
        ({"loras": [{"name": "ink", "strength": 0}]}, (LoraAsk("ink", 0.0),)),
        ({"loras": [{"name": "ink", "scale": None, "trigger": True}]}, (LoraAsk("ink", 1.0, trigger=True),)),
        ({"loras": []}, ()),
        ({"loras": None}, ()),
    ],
)
def test_the_field_is_read_in_the_forms_clients_send(fields: dict[str, Any], expected: tuple[LoraAsk, ...]):
    assert read(**fields) == expected


def test_a_request_with_loras_survives_the_way_to_a_node():
    asked = read_json_request(
        Task.GENERATION, orjson.dumps({"prompt": "x", "loras": [{"name": "a b", "scale": -4, "trigger": True}, "c"]})
    )

    assert read_json_request(Task.GENERATION, b"".join(encoded(asked)[0])) == asked


@pytest.mark.parametrize(
    ("prompt", "text", "asks"),
    [
        ("a fox", "a fox", ()),
        ("a  fox <b> ", "a  fox <b> ", ()),
        ("a fox <lora:ink:0.8>", "a fox", (LoraAsk("ink", 0.8),)),
        ("a <lora:ink> fox, <lora:sub/detail:-1>", "a fox,", (LoraAsk("ink"), LoraAsk("sub/detail", -1.0))),
        ("<lora:urn:air:sdxl:lora:civitai:12@34:.5>", "", (LoraAsk("urn:air:sdxl:lora:civitai:12@34", 0.5),)),
        ("<lora:ink : 1.5 >", "", (LoraAsk("ink", 1.5),)),
        ("<lora:墨 絵:1>", "", (LoraAsk("墨 絵"),)),
        (r"write \<lora:ink:1> as it is", "write <lora:ink:1> as it is", ()),
        ("<lora:ink:much>", "", (LoraAsk("ink:much"),)),
        ("<lora:../../etc/passwd:1>", "", (LoraAsk("../../etc/passwd"),)),
        ("<lora:> <lora <lyco:ink:1>", "<lora:> <lora <lyco:ink:1>", ()),
    ],
)
def test_tags_are_taken_out_of_the_prompt(prompt: str, text: str, asks: tuple[LoraAsk, ...]):
    assert tags_in(prompt) == (text, asks)


@pytest.mark.parametrize("prompt", ["<lora:ink:4.1>", "<lora:ink:-999999999>"])
def test_a_tag_beyond_the_scale_is_refused(prompt: str):
    with pytest.raises(InvalidRequest) as told:
        tags_in(prompt)

    assert told.value.param == "prompt"


def test_field_and_tags_count_together():
    assert asked_for("a <lora:b:2>", (LoraAsk("a"),)) == ("a", (LoraAsk("a"), LoraAsk("b", 2.0)))
    with pytest.raises(InvalidRequest) as told:
        asked_for("<lora:b>" * MAX_LORAS, (LoraAsk("a"),))

    assert (told.value.param, told.value.code) == ("loras", "array_above_max_length")


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=80).filter(lambda text: "lora:" not in text))
def test_a_prompt_without_tags_stays_as_it_is_to_the_letter(prompt: str):
    assert tags_in(prompt) == (prompt, ())
