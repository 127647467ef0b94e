"""Scenes in words, English and Japanese, and what remains of a scene when some of it is not said."""

import random
from collections.abc import Mapping
from dataclasses import replace

from node.demo.world import Scene, Thing

LANGUAGES = ("en", "ja")
JAPANESE_SHARE = 0.3
UNSAID = 0.12
"""How often a size, a place or a ground is left out of a training caption."""

Words = Mapping[str, tuple[str, ...]]

ENGLISH_SHAPES: Words = {
    "circle": ("circle", "circle", "disc"),
    "square": ("square",),
    "triangle": ("triangle",),
    "star": ("star",),
    "cross": ("cross", "cross", "plus sign"),
}
ENGLISH_SIZES: Words = {"small": ("small", "small", "little", "tiny"), "large": ("large", "large", "big", "huge")}
ENGLISH_PLACES: Words = {
    "top left": ("in the top left corner", "at the top left", "in the upper left"),
    "top": ("at the top", "at the top centre", "on the upper side"),
    "top right": ("in the top right corner", "at the top right", "in the upper right"),
    "left": ("on the left", "on the left side", "at the left"),
    "centre": ("in the centre", "in the center", "in the middle"),
    "right": ("on the right", "on the right side", "at the right"),
    "bottom left": ("in the bottom left corner", "at the bottom left", "in the lower left"),
    "bottom": ("at the bottom", "at the bottom centre", "on the lower side"),
    "bottom right": ("in the bottom right corner", "at the bottom right", "in the lower right"),
}
ENGLISH_RELATIONS: Words = {
    "left of": ("to the left of", "left of", "on the left of"),
    "right of": ("to the right of", "right of", "on the right of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
}
ENGLISH_GROUNDS = ("on a {} background", "on a {} background", "on a {} ground", "against a {} background")
ENGLISH_OPENINGS = ("", "", "", "a picture of ", "a drawing of ", "an image of ")

JAPANESE_COLOURS: Words = {
    "red": ("赤い", "赤い", "赤の"),
    "orange": ("オレンジ色の", "オレンジの"),
    "yellow": ("黄色い", "黄色の"),
    "green": ("緑の", "緑色の"),
    "blue": ("青い", "青い", "青の"),
    "purple": ("紫の", "紫色の"),
    "pink": ("ピンクの", "ピンク色の"),
    "white": ("白い", "白い", "白の"),
    "black": ("黒い", "黒い", "黒の"),
}
JAPANESE_SHAPES: Words = {
    "circle": ("円", "丸"),
    "square": ("四角", "正方形", "四角形"),
    "triangle": ("三角形", "三角"),
    "star": ("星",),
    "cross": ("十字",),
}
JAPANESE_SIZES: Words = {"small": ("小さな", "小さい"), "large": ("大きな", "大きい")}
JAPANESE_PLACES: Words = {
    "top left": ("左上", "左上の隅"),
    "top": ("上", "上側"),
    "top right": ("右上", "右上の隅"),
    "left": ("左", "左側"),
    "centre": ("中央", "真ん中"),
    "right": ("右", "右側"),
    "bottom left": ("左下", "左下の隅"),
    "bottom": ("下", "下側"),
    "bottom right": ("右下", "右下の隅"),
}
JAPANESE_RELATIONS: Words = {"left of": ("左",), "right of": ("右",), "above": ("上",), "below": ("下",)}


def some_of(scene: Scene, rng: random.Random) -> Scene:
    """The scene with some of its sizes, places and ground left unsaid; of two things, the places are never said."""

    def keep(word: str | None) -> str | None:
        return None if rng.random() < UNSAID else word

    things = tuple(
        replace(thing, size=keep(thing.size), place=None if scene.relation else keep(thing.place)) for thing in scene.things
    )
    return Scene(things, keep(scene.ground), scene.relation)


def all_of(scene: Scene) -> Scene:
    """The scene as far as captions can say it: of two things the relation, not the places."""
    if scene.relation is None:
        return scene
    return Scene(tuple(replace(thing, place=None) for thing in scene.things), scene.ground, scene.relation)


def caption(scene: Scene, rng: random.Random, language: str | None = None) -> str:
    """One of the ways to say all that the scene has. language: en, ja, or None for either."""
    if language is None:
        language = "ja" if rng.random() < JAPANESE_SHARE else "en"
    return _japanese(scene, rng) if language == "ja" else _english(scene, rng)


def _english(scene: Scene, rng: random.Random) -> str:
    ground = rng.choice(ENGLISH_GROUNDS).format(scene.ground).replace("a orange", "an orange") if scene.ground else ""
    named = [_english_thing(thing, rng) for thing in scene.things]
    if scene.relation:
        first, second = named
        parts = [f"{first} {rng.choice(ENGLISH_RELATIONS[scene.relation])} {second}", ground]
    else:
        place = scene.things[0].place
        parts = [named[0], rng.choice(ENGLISH_PLACES[place]) if place else "", ground]
        if rng.random() < 0.25:
            parts[1:] = parts[:0:-1]
    joint = ", " if rng.random() < 0.3 else " "
    words = joint.join(part for part in parts if part)
    return rng.choice(ENGLISH_OPENINGS) + words


def _english_thing(thing: Thing, rng: random.Random) -> str:
    assert thing.shape is not None
    size = rng.choice(ENGLISH_SIZES[thing.size]) if thing.size else ""
    words = " ".join(word for word in (size, thing.colour, rng.choice(ENGLISH_SHAPES[thing.shape])) if word)
    return f"an {words}" if words[0] in "aeio" else f"a {words}"


def _japanese(scene: Scene, rng: random.Random) -> str:
    ground = f"{rng.choice(JAPANESE_COLOURS[scene.ground])}背景" if scene.ground else ""
    named = [_japanese_thing(thing, rng) for thing in scene.things]
    if scene.relation:
        first, second = named
        side = rng.choice(JAPANESE_RELATIONS[scene.relation])
        body = rng.choice((f"{second}の{side}に{first}", f"{second}の{side}にある{first}"))
    else:
        place = scene.things[0].place
        where = rng.choice(JAPANESE_PLACES[place]) if place else ""
        body = f"{where}{rng.choice(('に', 'の', 'にある'))}{named[0]}" if where else named[0]
    if not ground:
        return body
    return rng.choice((f"{ground}の{body}", f"{ground}に、{body}", f"{ground}に{body}", f"{body}、{ground}"))


def _japanese_thing(thing: Thing, rng: random.Random) -> str:
    assert thing.shape is not None
    size = rng.choice(JAPANESE_SIZES[thing.size]) if thing.size else ""
    colour = rng.choice(JAPANESE_COLOURS[thing.colour])
    shape = rng.choice(JAPANESE_SHAPES[thing.shape])
    return rng.choice((f"{size}{colour}{shape}", f"{colour}{size}{shape}"))


def pieces(text: str) -> list[str]:
    """A caption's words as a learner should see them: Japanese is cut at its particles and words, not at spaces."""
    found: list[str] = []
    at = 0
    while at < len(text):
        word = next((word for word in _JAPANESE_WORDS if text.startswith(word, at)), text[at])
        found.append(word)
        at += len(word)
    return found


_JAPANESE_WORDS = sorted(
    {
        word
        for words in (JAPANESE_COLOURS, JAPANESE_SHAPES, JAPANESE_SIZES, JAPANESE_PLACES)
        for choices in words.values()
        for word in choices
    }
    | {"背景", "に", "の", "ある", "、"},
    key=lambda word: (-len(word), word),
)
