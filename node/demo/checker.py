"""What is seen in a picture: ground colour, and each thing's colour, shape, size and place.

It knows nothing of how the picture was made and uses no learned part: nearest palette colour, connected regions, and
the overlap of a region with each shape's stencil. Measured on drawn scenes its own error is far below a percent (see
tests/node/demo), so what it finds wrong in a sampled picture is the model's.
"""

from dataclasses import dataclass
from functools import cache
from itertools import permutations

import numpy as np
import numpy.typing as npt
from PIL import Image

from node.demo.world import COLOURS, RELATIONS, SHAPES, Scene, Thing, stencil

LOOK_PX = 112
"""The shorter side at which pictures are looked at."""
UNLIKE_GROUND = 42.0
"""RGB distance from the ground at which a pixel is part of a thing: half the distance of the two nearest colours."""
SPECK = 0.006
"""Regions below this part of the shorter side squared are noise; the smallest drawn thing, a small star, has 0.019."""
LARGE_FROM = 0.35
"""Diameters between the largest small thing (0.265) and the smallest large one of a pair (0.395), with room for both."""
THIRDS = (0.38, 0.62)
"""Half way between the middles of neighbouring places."""
STENCIL_PX = 32
CLEAR_OVERLAP = 0.6
"""A region that overlaps no stencil at least this much (intersection over union) has no shape we know."""

Mask = npt.NDArray[np.bool_]
Pixels = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SeenThing:
    """A region: what it is, where its middle is (parts of width and height), its diameter (part of the shorter side)."""

    thing: Thing
    x: float
    y: float
    diameter: float
    overlap: float


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything seen in one picture, largest thing first."""

    ground: str
    things: tuple[SeenThing, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Which parts of a request a picture fulfils. What was not asked for cannot be wrong.

    `count` is right when there are as many things as asked, no more and no fewer. Without a thing to look at, all of
    its parts are wrong.
    """

    ground: bool
    count: bool
    colour: bool
    shape: bool
    size: bool
    place: bool

    @property
    def all_right(self) -> bool:
        return self.ground and self.count and self.colour and self.shape and self.size and self.place


def look(picture: Image.Image) -> Seen:
    """Say what is in a picture of any size."""
    pixels = _pixels(picture)
    nearest = np.argmin(_distances(pixels), axis=-1)
    ground_index = int(np.bincount(nearest.ravel(), minlength=len(COLOURS)).argmax())
    ground_rgb = np.median(pixels[nearest == ground_index], axis=0)
    regions = _regions(np.linalg.norm(pixels - ground_rgb, axis=-1) > UNLIKE_GROUND)
    smallest = SPECK * min(pixels.shape[:2]) ** 2
    seen = [_seen_thing(region, pixels) for region in regions if region.sum() >= smallest]
    return Seen(list(COLOURS)[ground_index], tuple(sorted(seen, key=lambda one: -one.diameter)))


def compare(asked: Scene, seen: Seen) -> Verdict:
    """Hold a picture against what was asked. Things are paired with what is seen so that most is right."""
    ground = asked.ground is None or asked.ground == seen.ground
    count = len(seen.things) == len(asked.things)
    verdicts = [
        Verdict(
            ground=ground,
            count=count,
            colour=all(want.colour == got.thing.colour for want, got in zip(asked.things, order, strict=True)),
            shape=all(want.shape in (None, got.thing.shape) for want, got in zip(asked.things, order, strict=True)),
            size=all(want.size in (None, got.thing.size) for want, got in zip(asked.things, order, strict=True)),
            place=_places_right(asked, order),
        )
        for order in permutations(seen.things[: len(asked.things) + 1], len(asked.things))
    ]
    nothing = Verdict(ground=ground, count=False, colour=False, shape=False, size=False, place=False)
    return max(verdicts, key=_rights, default=nothing)


def _rights(verdict: Verdict) -> int:
    return verdict.colour * 2 + verdict.shape * 2 + verdict.size + verdict.place


def _places_right(asked: Scene, order: tuple[SeenThing, ...]) -> bool:
    if asked.relation is None:
        return all(want.place in (None, got.thing.place) for want, got in zip(asked.things, order, strict=True))
    first, second = order
    along = first.x - second.x if asked.relation in ("left of", "right of") else first.y - second.y
    across = first.y - second.y if asked.relation in ("left of", "right of") else first.x - second.x
    wanted = -1 if RELATIONS[asked.relation][0] in ("left", "top") else 1
    return along * wanted > abs(across)


def _pixels(picture: Image.Image) -> Pixels:
    scale = LOOK_PX / min(picture.size)
    width_px, height_px = (max(1, round(side * scale)) for side in picture.size)
    return np.asarray(picture.convert("RGB").resize((width_px, height_px), Image.Resampling.BOX), dtype=np.float32)


def _distances(pixels: Pixels) -> Pixels:
    """RGB distance of every pixel to every palette colour: (height, width, 3) -> (height, width, colours)."""
    anchors = np.array(list(COLOURS.values()), dtype=np.float32)
    distances: Pixels = np.linalg.norm(pixels[..., None, :] - anchors, axis=-1)
    return distances


def _regions(mask: Mask) -> list[Mask]:
    """The 4-connected regions of a mask.

    Every pixel starts with a number of its own and takes the smallest among its neighbours until nothing changes.
    """
    none = mask.size
    labels = np.where(mask, np.arange(mask.size).reshape(mask.shape), none)
    while True:
        spread = np.pad(labels, 1, constant_values=none)
        around = (spread[:-2, 1:-1], spread[2:, 1:-1], spread[1:-1, :-2], spread[1:-1, 2:])
        smaller = np.where(mask, np.minimum.reduce((labels, *around)), none)
        if np.array_equal(smaller, labels):
            return [labels == label for label in np.unique(labels[mask])]
        labels = smaller


def _seen_thing(region: Mask, pixels: Pixels) -> SeenThing:
    height_px, width_px = region.shape
    rows, columns = np.flatnonzero(region.any(axis=1)), np.flatnonzero(region.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    overlaps = {shape: _overlap(region[top:bottom, left:right], shape) for shape in SHAPES}
    shape = max(overlaps, key=lambda name: overlaps[name])
    x, y = float((left + right) / 2 / width_px), float((top + bottom) / 2 / height_px)
    diameter = float(max(bottom - top, right - left) / min(height_px, width_px))
    thing = Thing(
        shape if overlaps[shape] >= CLEAR_OVERLAP else None,
        _colour(pixels[region]),
        "large" if diameter >= LARGE_FROM else "small",
        _place(x, y),
    )
    return SeenThing(thing, x, y, diameter, overlaps[shape])


def _colour(pixels: Pixels) -> str:
    """The palette colour most pixels are nearest to; mixed pixels at the edge are always the fewer."""
    return list(COLOURS)[int(np.bincount(np.argmin(_distances(pixels), axis=-1)).argmax())]


def _place(x: float, y: float) -> str:
    column = ("left", "", "right")[int(np.searchsorted(THIRDS, x))]
    row = ("top", "", "bottom")[int(np.searchsorted(THIRDS, y))]
    return f"{row} {column}".strip() or "centre"


def _overlap(crop: Mask, shape: str) -> float:
    """Intersection over union of a region, stretched to a square, with a shape's stencil."""
    side = Image.fromarray(crop.astype(np.uint8) * 255).resize((STENCIL_PX, STENCIL_PX), Image.Resampling.BOX)
    region, known = np.asarray(side) > 127, _stencil_mask(shape)
    return float((region & known).sum() / (region | known).sum())


@cache
def _stencil_mask(shape: str) -> Mask:
    mask: Mask = np.asarray(stencil(shape, STENCIL_PX)) > 127
    return mask
