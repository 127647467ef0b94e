"""Which pixels an edit repaints, and that all others stay."""

import pytest
from PIL import Image, ImageChops

from common.errors import UserImageError
from common.images_api import Size
from node.masks import MAX_SOURCE_PIXELS, Canvas, as_source, canvas_of, fitted, kept_outside, padded


def rgba(alpha: int = 255, hole: tuple[int, int, int, int] | None = None) -> Image.Image:
    picture = Image.new("RGBA", (40, 24), (200, 30, 60, alpha))
    if hole:
        picture.paste((9, 9, 9, 0), hole)
    return picture


def marked(canvas: Canvas) -> tuple[int, int, int, int] | None:
    """The box of what is to be repainted."""
    assert canvas.repaint is not None
    return canvas.repaint.getbbox()


HOLE = (4, 6, 20, 18)


def test_what_is_transparent_in_a_mask_is_edited():
    assert marked(canvas_of(rgba(), rgba(hole=HOLE))) == HOLE


def test_what_is_white_in_a_mask_without_transparency_is_edited():
    mask = Image.new("RGB", (40, 24), "black")
    mask.paste("white", HOLE)

    assert marked(canvas_of(rgba(), mask)) == HOLE
    assert marked(canvas_of(rgba(), mask.convert("RGBA"))) == HOLE


def test_an_image_with_transparency_is_its_own_mask():
    assert marked(canvas_of(rgba(hole=HOLE), None)) == HOLE


def test_an_opaque_image_without_a_mask_is_edited_as_a_whole():
    assert canvas_of(rgba(), None).repaint is None
    assert canvas_of(Image.new("RGB", (8, 8)), None).repaint is None


def test_a_mask_that_marks_nothing_is_refused():
    with pytest.raises(UserImageError, match="marks nothing"):
        canvas_of(rgba(), Image.new("RGB", (40, 24), "black"))


@pytest.mark.parametrize("feather_px", [0, 3])
def test_outside_the_mask_the_original_stays_to_the_bit(feather_px: int):
    canvas = canvas_of(Image.effect_noise((40, 24), 90).convert("RGB"), rgba(hole=HOLE))
    assert canvas.repaint is not None

    made = kept_outside(Image.new("RGB", (40, 24), "blue"), canvas, feather_px=feather_px)

    outside = ImageChops.invert(canvas.repaint)
    difference = Image.composite(ImageChops.difference(made, canvas.picture), Image.new("RGB", (40, 24)), outside)
    assert difference.getbbox() is None
    assert made.getpixel((12, 12)) == (0, 0, 255)
    edge = made.getpixel((HOLE[0], 12))
    assert (edge == (0, 0, 255)) == (feather_px == 0)


def test_another_size_covers_and_is_cut_but_never_stretched():
    picture = Image.new("RGB", (80, 40), "red")
    picture.paste("blue", (30, 10, 50, 30))

    square = fitted(Canvas(picture, None), Size(40, 40))

    box = square.picture.point(lambda value: 255 if value > 128 else 0).getchannel("B").getbbox()
    assert box is not None
    assert square.picture.size == (40, 40)
    assert (box[2] - box[0], box[3] - box[1]) == (20, 20)


def test_a_canvas_is_padded_to_what_a_model_can_draw_and_stays_in_the_middle():
    canvas = canvas_of(Image.effect_noise((60, 52), 90).convert("RGB"), None)

    larger = padded(canvas, Size(64, 56))

    assert larger.picture.size == (64, 56)
    assert larger.picture.crop((2, 2, 62, 54)).tobytes() == canvas.picture.tobytes()


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ((800, 600), (800, 600)),
        ((3000, 3000), (2048, 2048)),
        ((16, 128), (64, 512)),
        # As wide as the least it would be 6,400,000 px long.
        ((1, 100_000), (6, 647_634)),
        ((8, 8000), (64, 64_000)),
    ],
)
def test_sources_are_scaled_to_what_models_look_at_and_never_beyond(sent: tuple[int, int], shown: tuple[int, int]):
    source = as_source(Image.new("RGBA", sent, "red"))

    assert source.size == shown
    assert source.width * source.height <= MAX_SOURCE_PIXELS
    assert source.getcolors() == [(shown[0] * shown[1], (255, 0, 0))]
