"""What the text encoder is taught."""

from node.demo.train_text import SLOTS, meaning
from node.demo.world import Scene, Thing


def test_the_meaning_of_a_scene_numbers_what_is_said_and_leaves_the_rest_zero():
    scene = Scene((Thing("circle", "red", "large", "left"),), "black")

    assert meaning(scene) == [9, 0, 1, 1, 2, 4, 0, 0, 0, 0]
    assert meaning(Scene(())) == [0] * len(SLOTS)


def test_the_things_of_a_pair_are_told_apart_by_their_order():
    first, second = Thing("star", "green"), Thing("square", "white")

    meanings = [meaning(Scene(things, None, "left of")) for things in ((first, second), (second, first))]

    assert meanings[0] != meanings[1]
    assert sorted(meanings[0]) == sorted(meanings[1])
