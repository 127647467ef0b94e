"""The checker, against pictures whose content is known."""

import random
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFilter

from node.demo.captions import all_of
from node.demo.checker import compare, look
from node.demo.world import Drawing, Scene, Thing, draw, lay_out, random_scene

STAR = Scene((Thing("star", "blue", "small", "top left"),), "yellow")
PAIR = Scene((Thing("circle", "red", "large", "left"), Thing("cross", "white", "small", "right")), "black", "left of")


def drawn(scene: Scene, seed: int = 0) -> Image.Image:
    return draw(lay_out(scene, random.Random(seed)), 256, 256)


def drawings(count: int) -> list[Drawing]:
    rng = random.Random(11)
    return [lay_out(random_scene(rng), rng) for _ in range(count)]


@pytest.mark.parametrize("size", [(128, 128), (256, 256), (512, 512), (384, 256), (256, 448)])
def test_the_checker_is_right_about_at_least_99_percent_of_drawn_scenes(size: tuple[int, int]):
    right = [compare(one.scene, look(draw(one, *size))).all_right for one in drawings(300)]

    assert sum(right) >= 297


def test_blur_and_noise_as_a_small_model_makes_them_do_not_mislead_the_checker():
    def spoilt(picture: Image.Image, seed: int) -> Image.Image:
        soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(2.5)), dtype=float)
        noisy = soft + np.random.default_rng(seed).normal(0, 8, soft.shape)
        return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))

    verdicts = [compare(one.scene, look(spoilt(draw(one, 256, 256), seed))) for seed, one in enumerate(drawings(200))]

    assert sum(verdict.all_right for verdict in verdicts) >= 194


def test_the_checker_names_what_it_sees():
    seen = look(drawn(STAR))

    assert seen.ground == "yellow"
    assert [one.thing for one in seen.things] == [Thing("star", "blue", "small", "top left")]


@pytest.mark.parametrize(
    ("aspect", "asked"),
    [
        ("ground", replace(STAR, ground="pink")),
        ("colour", replace(STAR, things=(replace(STAR.things[0], colour="red"),))),
        ("shape", replace(STAR, things=(replace(STAR.things[0], shape="square"),))),
        ("size", replace(STAR, things=(replace(STAR.things[0], size="large"),))),
        ("place", replace(STAR, things=(replace(STAR.things[0], place="left"),))),
        ("count", replace(STAR, things=STAR.things * 2, relation="left of")),
    ],
)
def test_a_picture_of_something_else_is_wrong_in_just_that(aspect: str, asked: Scene):
    verdict = compare(asked, look(drawn(STAR)))

    assert not getattr(verdict, aspect)
    assert aspect == "count" or verdict.ground + verdict.colour + verdict.shape + verdict.size + verdict.place == 4


def test_what_was_not_asked_for_cannot_be_wrong():
    assert compare(Scene((Thing("star", "blue"),)), look(drawn(STAR))).all_right


def test_the_relation_of_two_things_is_checked_whichever_is_larger():
    seen = look(drawn(PAIR))

    assert compare(all_of(PAIR), seen).all_right
    assert not compare(replace(all_of(PAIR), relation="right of"), seen).place
    assert not compare(replace(all_of(PAIR), relation="above"), seen).place
    assert compare(replace(all_of(PAIR), things=all_of(PAIR).things[::-1], relation="right of"), seen).all_right


def test_an_empty_picture_shows_nothing():
    seen = look(Image.new("RGB", (64, 64), (40, 160, 70)))

    assert (seen.ground, seen.things) == ("green", ())
    assert not compare(STAR, seen).colour


def test_any_picture_can_be_looked_at():
    static = np.random.default_rng(0).integers(0, 256, (50, 70, 4), dtype=np.uint8)

    assert not compare(STAR, look(Image.fromarray(static))).all_right
    assert look(Image.new("L", (1, 1), 255)).ground == "white"
