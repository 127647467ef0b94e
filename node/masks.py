"""Pixels of edits: which of them are to be repainted, and how the rest stays exactly as it was."""

from dataclasses import dataclass

from PIL import Image, ImageChops, ImageFilter, ImageOps

from common.errors import UserImageError
from common.images_api import Size

OPAQUE = 255
MAX_SOURCE_PIXELS = 4 * 1024 * 1024
"""What a model is shown of each source: families read at most a quarter of this, so the last scaling is their own."""
MIN_SOURCE_PX = 64
"""Shortest side of a source: FLUX.2 refuses less."""


@dataclass(frozen=True, slots=True)
class Canvas:
    """What a run starts from."""

    picture: Image.Image
    """RGB."""
    repaint: Image.Image | None
    """L, of the same size: 255 where to repaint, 0 where to keep; None for the whole picture."""
    sources: tuple[Image.Image, ...] = ()
    """RGB: every picture of an edit in its order, `picture` first, none of them cut. For models that look at them."""


def canvas_of(picture: Image.Image, mask: Image.Image | None) -> Canvas:
    """The first image of an edit and its mask, as a client sent them (RGB, or RGBA where they have alpha).

    OpenAI's rule: what is transparent (alpha 0) is to be edited; engines want it white. A mask without transparency is
    read by brightness instead, white to be edited (an extension: many tools draw masks so). Without a mask the image's
    own transparency is the mask; an opaque image is edited as a whole.

    Raises: UserImageError: the mask marks nothing.
    """
    rgb = flattened(picture)
    if mask is None:
        return Canvas(rgb, _transparent(picture))
    repaint = _transparent(mask)
    if repaint is None:
        repaint = flattened(mask).convert("L").point(lambda value: OPAQUE if value >= 128 else 0)
    if repaint.getbbox() is None:
        raise UserImageError(
            "Invalid mask: it marks nothing to edit. Make the area to edit transparent, or white in a mask without alpha.",
            param="mask",
            code="invalid_mask_image_format",
        )
    return Canvas(rgb, repaint)


def _transparent(picture: Image.Image) -> Image.Image | None:
    """255 where alpha is 0; None without any such pixel."""
    if picture.mode != "RGBA":
        return None
    repaint = picture.getchannel("A").point(lambda alpha: OPAQUE if alpha == 0 else 0)
    return repaint if repaint.getbbox() is not None else None


def flattened(picture: Image.Image) -> Image.Image:
    """RGB, what shows through transparency being what is stored there."""
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def as_source(picture: Image.Image) -> Image.Image:
    """RGB of the same shape, within the sizes that models look at.

    A strip a thousand times as long as wide stays narrower than the least: to be as wide it would take gigabytes. Models
    that mind are never shown one (`check_task`).
    """
    most = (MAX_SOURCE_PIXELS / (picture.width * picture.height)) ** 0.5
    scale = min(most, max(1.0, MIN_SOURCE_PX / min(picture.size)))
    if scale == 1.0:
        return flattened(picture)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return flattened(picture).resize(size, Image.Resampling.LANCZOS)


def fitted(canvas: Canvas, size: Size) -> Canvas:
    """The canvas at another size: scaled to cover it and cut at the middle, never stretched."""
    target = (size.width_px, size.height_px)
    if canvas.picture.size == target:
        return canvas
    picture = ImageOps.fit(canvas.picture, target, Image.Resampling.LANCZOS)
    # Nearest: a mask has no halves.
    repaint = None if canvas.repaint is None else ImageOps.fit(canvas.repaint, target, Image.Resampling.NEAREST)
    return Canvas(picture, repaint, canvas.sources)


def padded(canvas: Canvas, size: Size) -> Canvas:
    """The canvas in the middle of a slightly larger one whose border repeats its edge: what `cut_to` takes off again."""
    if canvas.picture.size == (size.width_px, size.height_px):
        return canvas
    repaint = None if canvas.repaint is None else _padded(canvas.repaint, size)
    return Canvas(_padded(canvas.picture, size), repaint, canvas.sources)


def _padded(picture: Image.Image, size: Size) -> Image.Image:
    left, top = (size.width_px - picture.width) // 2, (size.height_px - picture.height) // 2
    # EXTENT outside the picture repeats nothing in Pillow, so the edge is stretched by resizing thin strips.
    out = Image.new(picture.mode, (size.width_px, size.height_px))
    out.paste(picture.resize((size.width_px, size.height_px), Image.Resampling.NEAREST))
    out.paste(picture, (left, top))
    return out


def cut_to(picture: Image.Image, size: Size) -> Image.Image:
    """The middle of a picture at least as large as `size`."""
    left, top = (picture.width - size.width_px) // 2, (picture.height - size.height_px) // 2
    if (picture.width, picture.height) == (size.width_px, size.height_px):
        return picture
    return picture.crop((left, top, left + size.width_px, top + size.height_px))


def kept_outside(made: Image.Image, canvas: Canvas, *, feather_px: int) -> Image.Image:
    """What was made, with every pixel outside the mask exactly the original's: a VAE changes them all.

    feather_px: width of the soft edge, all of it inside the mask, so that the outside stays exact.
    """
    if canvas.repaint is None:
        return made
    blend = canvas.repaint
    if feather_px:
        # A blurred step is half at the edge: its upper half, stretched to the full range, rises from the edge inwards.
        soft = blend.filter(ImageFilter.GaussianBlur(feather_px / 2)).point(lambda value: max(0, 2 * value - OPAQUE))
        blend = ImageChops.multiply(soft, canvas.repaint)
    return Image.composite(made, canvas.picture, blend)
