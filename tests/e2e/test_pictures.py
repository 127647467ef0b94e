"""What is in the pictures: the demonstration model through router and node, judged by its checker."""

import base64
import io
import random
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from openai import OpenAI
from PIL import Image

from node.demo import checker
from node.demo.captions import all_of
from node.demo.evaluate import held_out_captions, repaints
from node.demo.world import draw, lay_out, training_scene
from tests.e2e.conftest import KEY, Started

EDITS = 10
VARIATIONS = 6


@pytest.fixture
def sdk(up: Started) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{up.url}/v1", api_key=KEY, max_retries=0, timeout=120) as client:
        yield client


def png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def opened(b64: str | None) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(b64 or ""))).convert("RGB")


def distance(first: Image.Image, second: Image.Image) -> float:
    """Mean difference of two pictures of one size, 0..255."""
    return float(np.abs(np.asarray(first, float) - np.asarray(second, float)).mean())


def test_three_previews_differ_and_come_ever_closer_to_the_picture(sdk: OpenAI):
    events = list(
        sdk.images.generate(
            prompt="a large red circle on the left, on a blue background",
            size="256x256",
            stream=True,
            partial_images=3,
            extra_body={"seed": 4},
        )
    )

    *previews, last = [opened(event.b64_json) for event in events]
    away = [distance(preview, last) for preview in previews]
    assert len(away) == 3
    assert away[0] > away[1] > away[2] > 0
    assert min(distance(first, second) for first, second in pairwise(previews)) > 0.2


def test_a_masked_edit_shows_inside_what_was_asked_and_outside_what_was_there(sdk: OpenAI):
    right = 0
    for number, edit in enumerate(repaints(EDITS)):
        # The wire's mask is transparent where to repaint; the evaluation's is white there.
        mask = Image.new("RGBA", edit.mask.size, (0, 0, 0, 255))
        mask.putalpha(edit.mask.point(lambda value: 255 - value))
        answer = sdk.images.edit(
            image=png(edit.picture), mask=png(mask), prompt=edit.asked.caption, extra_body={"seed": number, "strength": 1.0}
        )

        assert answer.data is not None
        made = opened(answer.data[0].b64_json)
        outside = np.asarray(edit.mask) == 0
        assert np.array_equal(np.asarray(made)[outside], np.asarray(edit.picture)[outside])
        right += checker.compare(edit.asked.scene, checker.look(made)).all_right
    assert right >= 0.8 * EDITS, f"{right} of {EDITS}"


# The SDK calls its own method deprecated, as OpenAI serves it no more.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_variation_keeps_the_subject_and_is_another_picture(sdk: OpenAI):
    rng = random.Random("variations")
    kept = 0
    for number in range(VARIATIONS):
        drawing = lay_out(training_scene(rng), rng)
        picture = draw(drawing, 256, 256)
        answer = sdk.images.create_variation(image=png(picture), size="256x256", extra_body={"seed": number})  # type: ignore[deprecated]

        assert answer.data is not None
        made = opened(answer.data[0].b64_json)
        verdict = checker.compare(all_of(drawing.scene), checker.look(made))
        kept += verdict.ground and verdict.colour and verdict.place
        assert distance(picture, made) > 1
    assert kept >= VARIATIONS - 1, f"{kept} of {VARIATIONS}"


def test_prompts_are_followed_through_the_whole_server(sdk: OpenAI):
    asked = held_out_captions(8, seed=2)
    answers: list[Any] = [
        sdk.images.generate(prompt=one.caption, size="256x256", extra_body={"seed": number}) for number, one in enumerate(asked)
    ]
    seen = [checker.look(opened(answer.data[0].b64_json)) for answer in answers]
    verdicts = [checker.compare(one.scene, each) for one, each in zip(asked, seen, strict=True)]

    assert sum(verdict.ground and verdict.colour and verdict.place for verdict in verdicts) >= 7
