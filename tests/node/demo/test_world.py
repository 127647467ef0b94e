"""Scenes and their drawings."""

import random

import numpy as np
import pytest

from node.demo.world import (
    COLOURS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    Thing,
    draw,
    held_out,
    held_out_scene,
    lay_out,
    random_scene,
    training_scene,
)


def test_the_world_has_enough_colours_shapes_sizes_and_places():
    assert (len(COLOURS), len(SHAPES), len(SIZES), len(PLACES), len(RELATIONS)) == (9, 5, 2, 9, 4)


def test_training_never_draws_a_held_out_combination():
    rng = random.Random(0)

    assert not any(held_out(training_scene(rng)) for _ in range(3000))


def test_about_a_twelfth_of_all_combinations_is_held_out():
    triples = [
        Scene((Thing(shape, colour),), ground)
        for shape in SHAPES
        for colour in COLOURS
        for ground in COLOURS
        if colour != ground
    ]

    assert 0.05 < sum(held_out(scene) for scene in triples) / len(triples) < 0.12


def test_every_single_colour_and_shape_is_seen_in_training_although_combinations_are_held_out():
    rng = random.Random(0)
    things = [thing for _ in range(3000) for thing in training_scene(rng).things]

    assert {thing.colour for thing in things} == set(COLOURS)
    assert {thing.shape for thing in things} == set(SHAPES)


def test_one_seed_draws_one_picture():
    first, second = (draw(lay_out(random_scene(rng), rng), 96, 64).tobytes() for rng in (random.Random(5), random.Random(5)))

    assert first == second


@pytest.mark.parametrize("size", [(256, 256), (128, 384), (384, 128), (1024, 512)])
def test_a_thing_keeps_its_place_and_its_roundness_in_any_format(size: tuple[int, int]):
    scene = Scene((Thing("circle", "red", "large", "bottom right"),), "white")

    pixels = np.asarray(draw(lay_out(scene, random.Random(0)), *size)).astype(int)

    rows, columns = np.nonzero(pixels[..., 1] < 150)
    assert columns.mean() / size[0] == pytest.approx(0.74, abs=0.02)
    assert rows.mean() / size[1] == pytest.approx(0.74, abs=0.02)
    assert np.ptp(columns) == pytest.approx(np.ptp(rows), abs=2)


def test_the_ground_always_differs_from_the_things_on_it():
    rng = random.Random(0)
    scenes = [random_scene(rng) for _ in range(1000)]

    assert all(thing.colour != scene.ground for scene in scenes for thing in scene.things)


def test_held_out_scenes_are_held_out():
    rng = random.Random(1)

    assert all(held_out(held_out_scene(rng)) for _ in range(200))
