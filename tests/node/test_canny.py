"""Edges of drawn scenes, where everyone can see where they are."""

import time

import numpy as np
import pytest
from PIL import Image, ImageDraw

from node.canny import canny


def edges(picture: Image.Image) -> np.ndarray:
    """True where a line is drawn."""
    found = canny(picture)
    assert (found.mode, found.size) == ("RGB", picture.size)
    values = np.asarray(found)
    assert (values == values[..., :1]).all()
    assert set(np.unique(values)) <= {0, 255}
    return values[..., 0] == 255


def square(inside: str = "white", outside: str = "black") -> Image.Image:
    picture = Image.new("RGB", (32, 24), outside)
    ImageDraw.Draw(picture).rectangle((8, 6, 19, 17), fill=inside)
    return picture


def test_a_square_is_its_outline_a_pixel_wide():
    found = edges(square())

    # Of the two pixels beside an edge, equally steep, the first counts; corners are rounder than that.
    assert found[6:18, 7].sum() >= 10
    assert found[6:18, 19].sum() >= 10
    assert found[5, 8:20].sum() >= 10
    assert found[17, 8:20].sum() >= 10
    assert not found[8:16, 9:18].any()
    assert found[:5].sum() + found[19:].sum() + found[:, :6].sum() + found[:, 21:].sum() == 0


@pytest.mark.parametrize("colours", [("red", "blue"), ("yellow", "white"), ("lime", "magenta")])
def test_an_edge_of_any_channel_counts(colours: tuple[str, str]):
    assert (edges(square(*colours)) == edges(square())).all()


def test_a_plain_picture_and_a_smooth_one_have_no_edges():
    assert not edges(Image.new("RGB", (20, 20), "teal")).any()
    assert not edges(Image.linear_gradient("L").convert("RGB")).any()


def test_a_weak_line_is_kept_where_it_continues_a_strong_one_and_nowhere_else():
    alone, continued = Image.new("RGB", (40, 20)), Image.new("RGB", (40, 20))
    for picture in (alone, continued):
        ImageDraw.Draw(picture).rectangle((0, 10, 39, 19), fill=(40, 40, 40))
    ImageDraw.Draw(continued).rectangle((0, 10, 9, 19), fill="white")

    assert not edges(alone).any()
    assert edges(continued)[9, 12:38].all()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2)])
def test_the_smallest_pictures_are_no_special_case(size: tuple[int, int]):
    assert canny(Image.new("RGB", size, "red")).size == size


def test_a_long_spiral_takes_no_longer_than_noise():
    spiral = Image.new("RGB", (768, 768))
    turns = np.arange(0, 250, 0.02)
    points = [(384 + 1.5 * t * np.cos(t), 384 + 1.5 * t * np.sin(t)) for t in turns]
    ImageDraw.Draw(spiral).line(points, fill=(36, 36, 36))
    ImageDraw.Draw(spiral).rectangle((380, 380, 388, 388), fill="white")
    noise = Image.effect_noise((768, 768), 90).convert("RGB")

    seconds = []
    for picture in (spiral, noise):
        began = time.perf_counter()
        assert edges(picture).any()
        seconds.append(time.perf_counter() - began)

    assert seconds[0] < 5 * seconds[1]
