"""Pixels -> file bytes, with what is written into the file about its making."""

import io

from PIL import Image

from common.images_api.request import OutputFormat
from common.png import png_bytes

DEFAULT_QUALITY = 95
"""Quality of JPEG and WebP when the client names none (it is OpenAI's default of 100 that is not worth its bytes)."""
EXIF_USER_COMMENT = 0x9286
EXIF_IFD = 0x8769
EXIF_IMAGE_DESCRIPTION = 0x010E


def encode(
    image: Image.Image,
    *,
    output_format: OutputFormat,
    compression: int | None = None,
    parameters: str | None = None,
    recipe: str | None = None,
) -> bytes:
    """The bytes of an RGB picture as a file.

    compression: 0..100, the quality of JPEG and WebP (100 is best); no effect on PNG, which is lossless.
    parameters: how the picture was made, in A1111's form; an iTXt chunk in PNG (a tEXt chunk would lose Japanese),
    the EXIF user comment in JPEG and WebP, where A1111 and its descendants look for it.
    recipe: the same as JSON, whole; an iTXt chunk `aquatint`, or the EXIF image description (then ASCII only).
    """
    if output_format is OutputFormat.PNG:
        return png_bytes(image, {name: text for name, text in (("parameters", parameters), ("aquatint", recipe)) if text})
    out = io.BytesIO()
    exif = Image.Exif()
    if parameters:
        exif.get_ifd(EXIF_IFD)[EXIF_USER_COMMENT] = b"UNICODE\0" + parameters.encode("utf-16-be")
    if recipe:
        exif[EXIF_IMAGE_DESCRIPTION] = recipe
    quality = DEFAULT_QUALITY if compression is None else compression
    image.save(out, output_format.value.upper(), quality=quality, exif=exif.tobytes())
    return out.getvalue()
