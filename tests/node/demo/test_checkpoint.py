"""The shipped weights: that they are the ones the model card describes, and that they do what it says.

The card's figures are measured on hundreds of pictures; here a few dozen of the same ones must not be far below.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from node.demo import CHECKPOINT, FEW_STEP_ADAPTER, architecture
from node.demo.captions import all_of
from node.demo.checker import compare, look
from node.demo.evaluate import (
    FEW_STEPS,
    STEPS,
    autoencoder_figures,
    distance_by_strength,
    held_out_captions,
    judge,
    masked_edits,
    paint,
    repaints,
    shares,
    use_few_steps,
)
from node.demo.world import Scene, Thing

PICTURES = 24
CARD = Path(architecture.__file__).parent / "MODEL_CARD.md"
LARGEST_BYTES = 25_000_000
BATCH_TOLERANCE = 3
"""Largest difference (0..255) of a picture painted alone and in a batch: other sums, other last bits."""

RED_CIRCLE = Scene((Thing("circle", "red", "large", "left"),), "blue")


@pytest.fixture(scope="module")
def recorded() -> dict[str, Any]:
    figures: dict[str, Any] = json.loads((CHECKPOINT / "figures.json").read_text())
    return figures


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return architecture.load(CHECKPOINT)


@pytest.fixture(scope="module")
def few_step_pipeline() -> Any:
    fast = architecture.load(CHECKPOINT)
    use_few_steps(fast, FEW_STEP_ADAPTER)
    return fast


def weight_files() -> list[Path]:
    files = sorted(CHECKPOINT.rglob("*.safetensors"))
    assert len(files) == 4, "vae, text encoder, unet and adapter"
    return files


def test_the_weights_are_the_ones_of_the_model_card():
    card = CARD.read_text()

    for path in weight_files():
        assert hashlib.sha256(path.read_bytes()).hexdigest() in card, path


def test_the_model_card_states_the_recorded_figures(recorded: dict[str, Any]):
    card = CARD.read_text()

    for part in ("prompt_following", "few_steps"):
        for aspect in ("ground", "colour", "shape", "size", "place"):
            assert f"{100 * recorded[part]['all'][aspect]:.1f} %" in card, (part, aspect)


def test_the_checkpoint_is_small_fp16_and_nothing_but_safetensors_and_text():
    files = [path for path in CHECKPOINT.rglob("*") if path.is_file()]

    assert sum(path.stat().st_size for path in files) <= LARGEST_BYTES
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt"}
    for path in weight_files():
        with safe_open(path, framework="np") as weights:
            assert {weights.get_slice(name).get_dtype() for name in weights.keys()} <= {"F16", "I64"}  # noqa: SIM118


def test_the_autoencoder_keeps_everything_the_checker_looks_at(pipeline: Any):
    assert autoencoder_figures(pipeline.vae, PICTURES)["all_right"] >= 0.95


@pytest.fixture(scope="module")
def held_out_pictures(pipeline: Any) -> list[Image.Image]:
    return paint(pipeline, [one.caption for one in held_out_captions(PICTURES)]).pictures


@pytest.fixture(scope="module")
def few_step_pictures(few_step_pipeline: Any) -> list[Image.Image]:
    captions = [one.caption for one in held_out_captions(PICTURES)]
    return paint(few_step_pipeline, captions, steps=FEW_STEPS, guidance=1.0).pictures


@pytest.mark.parametrize(("part", "pictures"), [("prompt_following", "held_out_pictures"), ("few_steps", "few_step_pictures")])
def test_held_out_captions_are_followed_as_well_as_the_card_says(
    part: str, pictures: str, recorded: dict[str, Any], request: pytest.FixtureRequest
):
    measured = shares(judge(held_out_captions(PICTURES), request.getfixturevalue(pictures)))

    assert {aspect: share for aspect, share in measured.items() if share < recorded[part]["all"][aspect] - 0.12} == {}


def evaluations(pipeline: Any, **how: Any) -> int:
    """How many pictures' worth of forward passes the UNet makes for one picture."""
    rows: list[int] = []
    hook = pipeline.unet.register_forward_pre_hook(lambda unet, inputs: rows.append(len(inputs[0])))
    paint(pipeline, ["a red circle"], width_px=64, height_px=64, **how)
    hook.remove()
    return sum(rows)


def test_four_steps_take_a_tenth_of_the_evaluations_of_twenty_guided_ones(pipeline: Any, few_step_pipeline: Any):
    assert evaluations(pipeline) == 2 * STEPS
    assert evaluations(few_step_pipeline, steps=FEW_STEPS, guidance=1.0) == FEW_STEPS == 2 * STEPS / 10


def test_a_japanese_caption_paints_what_it_says(pipeline: Any):
    (picture,) = paint(pipeline, ["青い背景の左に大きな赤い円"]).pictures

    assert compare(RED_CIRCLE, look(picture)).all_right


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_picture(pipeline: Any):
    caption = "a star on a green background"

    first, again, other = (paint(pipeline, [caption], first_seed=seed, steps=2).pictures[0].tobytes() for seed in (7, 7, 8))

    assert first == again
    assert first != other


def test_pictures_of_one_request_differ_from_one_another(pipeline: Any):
    pictures = paint(pipeline, ["a small triangle"] * 4, steps=2).pictures

    assert len({picture.tobytes() for picture in pictures}) == 4


def test_a_picture_is_the_same_alone_and_in_a_batch(pipeline: Any, held_out_pictures: list[Image.Image]):
    for number, asked in enumerate(held_out_captions(4)):
        (alone,) = paint(pipeline, [asked.caption], first_seed=number).pictures
        assert difference(alone, held_out_pictures[number]).max() <= BATCH_TOLERANCE


def difference(first: Image.Image, second: Image.Image) -> np.ndarray[Any, np.dtype[np.int16]]:
    return np.abs(np.asarray(first, dtype=np.int16) - np.asarray(second, dtype=np.int16))


def test_a_masked_edit_paints_what_was_asked_inside_and_keeps_every_pixel_outside(pipeline: Any, recorded: dict[str, Any]):
    figures, pictures = masked_edits(pipeline, 8)

    assert figures["all_right"] >= recorded["masked_edits"]["all_right"] - 0.2
    for edit, picture in zip(repaints(8), pictures, strict=True):
        outside = np.asarray(edit.mask) == 0
        assert (difference(edit.picture, picture)[outside] == 0).all()


def test_the_stronger_img2img_is_the_less_of_the_input_remains(pipeline: Any):
    distances = list(distance_by_strength(pipeline, 4).values())

    assert distances == sorted(distances)
    assert distances[-1] > 2 * distances[0]


@pytest.mark.parametrize(("width_px", "height_px"), [(512, 512), (384, 256), (256, 384)])
def test_other_sizes_are_painted_sensibly(pipeline: Any, width_px: int, height_px: int):
    asked = held_out_captions(4, seed=2)

    painted = paint(pipeline, [one.caption for one in asked], width_px=width_px, height_px=height_px, steps=STEPS // 2)

    verdicts = judge(asked, painted.pictures)
    assert sum(verdict.ground for verdict in verdicts) >= 3
    assert sum(verdict.colour for verdict in verdicts) >= 2


def test_the_relation_of_a_caption_is_painted(pipeline: Any):
    scene = Scene((Thing("star", "white"), Thing("square", "yellow")), "blue", "left of")
    pictures = paint(pipeline, ["a white star to the left of a yellow square on a blue background"] * 4).pictures

    verdicts = [compare(all_of(scene), look(picture)) for picture in pictures]
    assert sum(verdict.ground and verdict.count and verdict.colour and verdict.place for verdict in verdicts) >= 3
