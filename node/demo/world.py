"""What can be in a picture: one or two coloured shapes on a coloured ground, and how it is drawn.

A Scene is what words can say ("a large red circle on the left"); a Drawing adds what words leave open (the exact spot,
diameter and tint). Spots and diameters are relative to the picture, so one scene can be drawn at any size and shape.
"""

import math
import random
import zlib
from dataclasses import dataclass

from PIL import Image, ImageDraw

RGB = tuple[int, int, int]

COLOURS: dict[str, RGB] = {
    "red": (214, 39, 40),
    "orange": (245, 130, 32),
    "yellow": (250, 214, 40),
    "green": (44, 160, 70),
    "blue": (36, 84, 204),
    "purple": (134, 58, 168),
    "pink": (246, 158, 196),
    "white": (245, 245, 245),
    "black": (24, 24, 28),
}
TINT = 7
"""A drawn colour differs from its anchor by at most this much per channel (0..255)."""

SHAPES = ("circle", "square", "triangle", "star", "cross")

SIZES: dict[str, tuple[float, float]] = {"small": (0.235, 0.265), "large": (0.44, 0.48)}
"""Range of the diameter (the longer side of the bounding box) as a part of the picture's shorter side."""
PAIR_LARGE = (0.395, 0.425)
"""Two large things side by side must not touch."""

NEAR, MIDDLE, FAR = 0.26, 0.5, 0.74
PLACES: dict[str, tuple[float, float]] = {
    "top left": (NEAR, NEAR),
    "top": (MIDDLE, NEAR),
    "top right": (FAR, NEAR),
    "left": (NEAR, MIDDLE),
    "centre": (MIDDLE, MIDDLE),
    "right": (FAR, MIDDLE),
    "bottom left": (NEAR, FAR),
    "bottom": (MIDDLE, FAR),
    "bottom right": (FAR, FAR),
}
"""Middle of a thing, (x, y) as parts of width and height."""
WANDER = 0.006
"""A drawn thing is at most this far from its place, as a part of the side."""

RELATIONS: dict[str, tuple[str, str]] = {
    "left of": ("left", "right"),
    "right of": ("right", "left"),
    "above": ("top", "bottom"),
    "below": ("bottom", "top"),
}
"""How the first thing stands to the second, and the places that makes."""

PAIR_SHARE = 0.25
"""Part of all random scenes that show two things."""
HELD_OUT_ONE_IN = 12
SUPERSAMPLING = 4


@dataclass(frozen=True, slots=True)
class Thing:
    """One shape. None: not said (in what was asked), or not to be made out (in what was seen)."""

    shape: str | None
    colour: str
    size: str | None = None
    place: str | None = None


@dataclass(frozen=True, slots=True)
class Scene:
    """What a picture shows, as far as words go. With two things, `relation` is that of the first to the second."""

    things: tuple[Thing, ...]
    ground: str | None = None
    relation: str | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """Where and how one thing is drawn: middle as parts of width and height, diameter as a part of the shorter side."""

    shape: str
    rgb: RGB
    x: float
    y: float
    diameter: float


@dataclass(frozen=True, slots=True)
class Drawing:
    """A scene with everything decided."""

    scene: Scene
    ground_rgb: RGB
    marks: tuple[Mark, ...]


def held_out(scene: Scene) -> bool:
    """True for scenes that are never drawn in training: one in twelve of the (colour, shape, ground) triples.

    The rule is a checksum of the words, so it needs no list and is the same everywhere. Because the whole triple is
    withheld at every size and place, a model that paints it right has put together what it never saw together.
    """
    return any(
        zlib.crc32(f"{thing.colour} {thing.shape} on {scene.ground}".encode()) % HELD_OUT_ONE_IN == 0 for thing in scene.things
    )


def random_scene(rng: random.Random) -> Scene:
    """Any scene, held out or not, with every word decided."""
    pair = rng.random() < PAIR_SHARE
    ground, *colours = rng.sample(list(COLOURS), 3)
    relation = rng.choice(list(RELATIONS)) if pair else None
    places = RELATIONS[relation] if relation else (rng.choice(list(PLACES)),)
    things = tuple(
        Thing(rng.choice(SHAPES), colour, rng.choice(list(SIZES)), place)
        for colour, place in zip(colours, places, strict=False)
    )
    return Scene(things, ground, relation)


def training_scene(rng: random.Random) -> Scene:
    """A random scene that training may see."""
    return _drawn_until(rng, wanted=False)


def held_out_scene(rng: random.Random) -> Scene:
    """A random scene that training never sees."""
    return _drawn_until(rng, wanted=True)


def _drawn_until(rng: random.Random, *, wanted: bool) -> Scene:
    while held_out(scene := random_scene(rng)) is not wanted:
        pass
    return scene


def lay_out(scene: Scene, rng: random.Random) -> Drawing:
    """Decide what words leave open. The scene must name every colour, shape, size and place."""
    assert scene.ground is not None
    marks = []
    for thing in scene.things:
        assert thing.shape is not None
        assert thing.size is not None
        assert thing.place is not None
        x, y = PLACES[thing.place]
        span = PAIR_LARGE if scene.relation and thing.size == "large" else SIZES[thing.size]
        marks.append(
            Mark(
                thing.shape,
                _tinted(thing.colour, rng),
                x + rng.uniform(-WANDER, WANDER),
                y + rng.uniform(-WANDER, WANDER),
                rng.uniform(*span),
            )
        )
    return Drawing(scene, _tinted(scene.ground, rng), tuple(marks))


def _tinted(colour: str, rng: random.Random) -> RGB:
    red, green, blue = (min(255, max(0, channel + rng.randint(-TINT, TINT))) for channel in COLOURS[colour])
    return red, green, blue


def draw(drawing: Drawing, width_px: int, height_px: int) -> Image.Image:
    """The picture, mode RGB, with smooth edges."""
    picture = Image.new("RGB", (width_px, height_px), drawing.ground_rgb)
    for mark in drawing.marks:
        radius_px = mark.diameter * min(width_px, height_px) / 2
        middle = (mark.x * width_px, mark.y * height_px)
        left, top = (math.floor(at - radius_px) - 1 for at in middle)
        side_px = math.ceil(2 * radius_px) + 4
        stencil = Image.new("L", (side_px * SUPERSAMPLING, side_px * SUPERSAMPLING), 0)
        _fill(
            ImageDraw.Draw(stencil),
            mark.shape,
            ((middle[0] - left) * SUPERSAMPLING, (middle[1] - top) * SUPERSAMPLING),
            radius_px * SUPERSAMPLING,
        )
        picture.paste(mark.rgb, (left, top), stencil.reduce(SUPERSAMPLING))
    return picture


def stencil(shape: str, side_px: int) -> Image.Image:
    """A shape alone, filling its bounding box: mode L, 255 inside, side_px square at most."""
    canvas = Image.new("L", (side_px * 4, side_px * 4), 0)
    _fill(ImageDraw.Draw(canvas), shape, (side_px * 2.0, side_px * 2.0), side_px * 1.6)
    return canvas.crop(canvas.getbbox()).resize((side_px, side_px), Image.Resampling.BOX)


def _fill(pen: ImageDraw.ImageDraw, shape: str, middle: tuple[float, float], radius: float) -> None:
    """Draw a shape in white whose bounding box is 2 * radius at its longer side, centred on `middle`."""
    x, y = middle
    if shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    else:
        pen.polygon([(x + dx * radius, y + dy * radius) for dx, dy in OUTLINES[shape]], fill=255)


def _star_outline() -> tuple[tuple[float, float], ...]:
    corners = [
        (reach * math.sin(math.pi * step / 5), -reach * math.cos(math.pi * step / 5))
        for step in range(10)
        for reach in (1.0 if step % 2 == 0 else 0.42,)
    ]
    low, high = min(y for _, y in corners), max(y for _, y in corners)
    half = max(x for x, _ in corners)
    return tuple((x / half, (y - (low + high) / 2) / half) for x, y in corners)


ARM = 0.36
OUTLINES: dict[str, tuple[tuple[float, float], ...]] = {
    "square": ((-1, -1), (1, -1), (1, 1), (-1, 1)),
    "triangle": ((0, -0.9), (1, 0.9), (-1, 0.9)),
    "star": _star_outline(),
    "cross": (
        (-ARM, -1), (ARM, -1), (ARM, -ARM), (1, -ARM), (1, ARM), (ARM, ARM),
        (ARM, 1), (-ARM, 1), (-ARM, ARM), (-1, ARM), (-1, -ARM), (-ARM, -ARM),
    ),
}  # fmt: skip
"""Corners with the middle of the bounding box at (0, 0) and its longer half side 1; y points down."""
