"""Captions and the vocabulary learned on them."""

import random

import pytest

from node.demo import tokenizer
from node.demo.captions import LANGUAGES, all_of, caption, some_of
from node.demo.world import COLOURS, SHAPES, Scene, Thing, random_scene, training_scene

LEFT = Scene((Thing("circle", "red", "large", "left"),), "blue")
PAIR = Scene((Thing("star", "green"), Thing("square", "white")), "black", "left of")


def wordings(scene: Scene, language: str) -> set[str]:
    rng = random.Random(0)
    return {caption(scene, rng, language) for _ in range(400)}


@pytest.fixture(scope="module")
def words():
    return tokenizer.learned()


def test_a_scene_has_many_wordings():
    assert "a large red circle on the left on a blue background" in wordings(LEFT, "en")
    assert "青い背景の左に大きな赤い円" in wordings(LEFT, "ja")
    assert all(len(wordings(scene, language)) > 50 for scene in (LEFT, PAIR) for language in LANGUAGES)


def test_a_relation_is_said_the_right_way_round():
    assert "a green star to the left of a white square on a black background" in wordings(PAIR, "en")
    assert "黒い背景に白い四角の左に緑の星" in wordings(PAIR, "ja")


def test_a_caption_says_nothing_that_was_left_out():
    bare = wordings(Scene((Thing("cross", "pink"),)), "en")

    assert bare <= {
        f"{opening}a pink {shape}"
        for opening in ("", "a picture of ", "a drawing of ", "an image of ")
        for shape in ("cross", "plus sign")
    }


def test_english_articles_fit_their_words():
    texts = wordings(Scene((Thing("circle", "orange"),), "orange"), "en")

    assert any("an orange circle" in text for text in texts)
    assert not any("a orange" in text or "an small" in text for text in texts)


def test_some_captions_leave_out_size_place_or_ground():
    rng = random.Random(0)
    scenes = [some_of(training_scene(rng), rng) for _ in range(500)]

    assert any(scene.ground is None for scene in scenes)
    assert any(thing.size is None for scene in scenes for thing in scene.things)
    assert all(thing.colour in COLOURS and thing.shape in SHAPES for scene in scenes for thing in scene.things)


def test_every_caption_fits_the_text_encoder(words):
    rng = random.Random(3)
    texts = [caption(all_of(random_scene(rng)), rng) for _ in range(1000)]

    assert max(len(ids) for ids in words(texts).input_ids) <= 32


def test_a_word_of_the_world_is_one_token_and_japanese_is_not_glued_together(words):
    assert len(words.tokenize("a large red circle on the left")) == 7
    assert len(words.tokenize("青い背景の左に大きな赤い円")) == 8


@pytest.mark.parametrize("text", ["龍と zebra 😀", "ñandú", "ωμέγα", ""])
def test_any_text_survives_the_tokenizer(words, text: str):
    kept = words.decode(words(text).input_ids, skip_special_tokens=True)

    assert kept.replace(" ", "") == text.replace(" ", "")


def test_the_vocabulary_is_the_same_every_time(words):
    assert tokenizer.learned().get_vocab() == words.get_vocab()
