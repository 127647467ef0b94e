"""Edits, variations and streams, through router and node, with the real SDK."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI
from PIL import Image

from tests.contract.corpus import UNREADABLE, Hostile, answer_in_time
from tests.e2e.conftest import KEY, Started

HEADERS = {"authorization": f"Bearer {KEY}"}


@pytest.fixture
def sdk(up: Started) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{up.url}/v1", api_key=KEY, max_retries=0, timeout=120) as client:
        yield client


def png(picture: Image.Image, file_format: str = "PNG") -> bytes:
    out = io.BytesIO()
    picture.save(out, file_format)
    return out.getvalue()


def opened(b64: str | None) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(b64 or ""))).convert("RGB")


def scene(width: int = 96, height: int = 64) -> Image.Image:
    picture = Image.new("RGB", (width, height), (40, 60, 200))
    picture.paste((220, 40, 40), (10, 10, 40, 40))
    return picture


def mask_of(width: int = 96, height: int = 64) -> bytes:
    mask = Image.new("RGBA", (width, height), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (50, 10, 90, 50))
    return png(mask)


def test_a_masked_edit_changes_nothing_outside_its_mask(sdk: OpenAI):
    answer = sdk.images.edit(image=png(scene()), mask=mask_of(), prompt="a green square", extra_body={"seed": 7, "steps": 4})

    assert answer.data is not None
    assert answer.model_extra is not None
    made = opened(answer.data[0].b64_json)
    kept = scene()
    for box in ((0, 0, 50, 64), (90, 0, 96, 64), (50, 0, 90, 10), (50, 50, 90, 64)):
        assert made.crop(box).tobytes() == kept.crop(box).tobytes()
    assert made.crop((50, 10, 90, 50)).tobytes() != kept.crop((50, 10, 90, 50)).tobytes()
    assert answer.model_extra["parameters"]["method"] == "inpaint"
    assert answer.size == "96x64"


@pytest.mark.parametrize("image", [[("a.png", png(scene()), "image/png")], io.BytesIO(png(scene())), png(scene(), "JPEG")])
def test_an_edit_without_a_mask_changes_the_whole_picture(sdk: OpenAI, image: Any):
    answer = sdk.images.edit(image=image, prompt="a green square", extra_body={"seed": 7, "steps": 4, "strength": 0.5})

    assert answer.data is not None
    assert answer.model_extra is not None
    assert opened(answer.data[0].b64_json).size == (96, 64)
    assert (answer.model_extra["parameters"]["method"], answer.model_extra["parameters"]["strength"]) == ("image-to-image", 0.5)


# The SDK calls its own method deprecated, as OpenAI serves it no more.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_three_variations_of_a_picture_are_three_pictures(sdk: OpenAI):
    answer = sdk.images.create_variation(image=png(scene()), n=3, size="256x256")  # type: ignore[deprecated]

    assert answer.data is not None
    pictures = [opened(item.b64_json) for item in answer.data]
    assert {picture.size for picture in pictures} == {(256, 256)}
    assert len({picture.tobytes() for picture in pictures}) == 3


def test_a_json_edit_with_data_urls_is_the_same_as_a_form(up: Started, sdk: OpenAI):
    url = "data:image/png;base64," + base64.b64encode(png(scene())).decode()
    body = {"prompt": "a green square", "images": [{"image_url": url}], "seed": 7, "steps": 4}

    as_json = httpx.post(f"{up.url}/v1/images/edits", json=body, headers=HEADERS, timeout=60).json()
    as_form = sdk.images.edit(image=png(scene()), prompt="a green square", extra_body={"seed": 7, "steps": 4})

    assert as_form.data is not None
    assert as_json["data"][0]["b64_json"] == as_form.data[0].b64_json


@pytest.mark.parametrize("partial_images", [0, 3])
def test_a_streamed_picture_comes_with_its_previews_and_is_the_one_an_ordinary_answer_holds(sdk: OpenAI, partial_images: int):
    asked: dict[str, Any] = {"prompt": "a red cube", "size": "96x64", "extra_body": {"seed": 5, "steps": 12}}

    events = list(sdk.images.generate(stream=True, partial_images=partial_images, **asked))
    plain = sdk.images.generate(**asked)

    assert [event.type for event in events[:-1]] == ["image_generation.partial_image"] * partial_images
    assert [event.partial_image_index for event in events[:-1]] == list(range(partial_images))  # type: ignore[union-attr]
    last = events[-1]
    assert last.type == "image_generation.completed"
    assert (last.size, last.output_format, last.usage.total_tokens > 0) == ("96x64", "png", True)
    assert plain.data is not None
    assert last.b64_json == plain.data[0].b64_json
    assert {opened(event.b64_json).size for event in events} == {(96, 64)}


def test_the_last_event_of_a_stream_can_be_made_again_to_the_byte(up: Started):
    asked = {"prompt": "a red cube", "size": "96x64", "seed": 5, "steps": 4, "stream": True, "partial_images": 1}
    key = {"idempotency-key": "the-last-event"}

    first, again = (
        httpx.post(f"{up.url}/v1/images/generations", json=asked, headers=HEADERS | key, timeout=120).content for _ in range(2)
    )

    assert again.startswith(b"event: image_generation.completed\n")
    assert first.endswith(b"\n\n" + again)


def test_a_streamed_edit_has_events_of_its_own(sdk: OpenAI):
    events = list(
        sdk.images.edit(image=png(scene()), prompt="x", stream=True, partial_images=1, extra_body={"steps": 8, "seed": 1})
    )

    assert [event.type for event in events] == ["image_edit.partial_image", "image_edit.completed"]


def test_what_is_wrong_with_a_stream_before_it_begins_is_an_ordinary_error(sdk: OpenAI):
    with pytest.raises(openai.BadRequestError) as caught:
        list(sdk.images.generate(prompt="x", size="7x7", stream=True))
    with pytest.raises(openai.BadRequestError) as twice:
        list(sdk.images.generate(prompt="x", n=2, stream=True))

    assert (caught.value.param, caught.value.code) == ("size", "invalid_value")
    assert "n=1" in twice.value.message


def test_pictures_that_cannot_be_used_are_refused_by_name(sdk: OpenAI):
    for image, code in ((b"GIF89a junk", "unsupported_file_mimetype"), (png(scene())[:50], "invalid_image_file")):
        with pytest.raises(openai.BadRequestError) as caught:
            sdk.images.edit(image=image, prompt="x")
        assert caught.value.code == code
    with pytest.raises(openai.BadRequestError, match="at most 1 image"):
        sdk.images.edit(image=[png(scene()), png(scene())], prompt="x")
    with pytest.raises(openai.BadRequestError, match="mask size"):
        sdk.images.edit(image=png(scene()), mask=mask_of(64, 64), prompt="x")
    with pytest.raises(openai.BadRequestError, match=r"4,194,304 bytes"):
        sdk.images.edit(image=b"\x89PNG" + b"\x00" * 4_194_304, prompt="x")


def test_a_file_says_how_it_was_made_unless_it_is_not_to(sdk: OpenAI, tmp_path: Path):
    told = sdk.images.generate(prompt="赤い円", size="64x64", extra_body={"seed": 5, "steps": 4})
    untold = sdk.images.generate(prompt="赤い円", size="64x64", extra_body={"seed": 5, "steps": 4, "embed_metadata": False})

    assert told.data is not None
    assert untold.data is not None
    texts = [Image.open(io.BytesIO(base64.b64decode(a.data[0].b64_json or ""))).info for a in (told, untold)]  # type: ignore[index]
    assert texts[0]["parameters"].startswith("赤い円\n")
    assert "Seed: 5" in texts[0]["parameters"]
    assert json.loads(texts[0]["aquatint"])["seed"] == 5
    assert not {"parameters", "aquatint"} & set(texts[1])


@pytest.mark.parametrize("hostile", UNREADABLE, ids=str)
def test_pixels_that_cannot_be_decoded_cost_no_more_than_a_refusal(up: Started, hostile: Hostile):
    with httpx.Client(base_url=up.url, headers=HEADERS, timeout=60) as client:
        reply = answer_in_time(client, hostile)

    which = "mask" if "mask" in hostile.name else "image 1"
    message = f"Invalid image file or mode for {which}, please check your image file."
    error = {"message": message, "type": "image_generation_user_error", "param": None, "code": "invalid_image_file"}
    assert (reply.status_code, reply.json()) == (400, {"error": error})


@pytest.mark.parametrize(
    ("size", "said"),
    [("9x9", "Width must be 64 to "), ("64x9", "Height must be 64 to "), ("16000x16000", "Width must be 64 to ")],
)
def test_a_size_that_the_model_does_not_make_is_refused_with_its_bounds(sdk: OpenAI, size: str, said: str):
    with pytest.raises(openai.BadRequestError) as caught:
        sdk.images.generate(prompt="x", size=size)  # type: ignore[call-overload]

    assert isinstance(caught.value.body, dict)
    assert caught.value.body["type"] == "image_generation_user_error"
    assert (caught.value.param, caught.value.code) == ("size", "invalid_value")
    assert caught.value.body["message"].startswith(f"Invalid size '{size}'. {said}")
