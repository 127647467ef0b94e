"""How alike two pictures are."""

import math

from PIL import Image, ImageChops, ImageStat

EQUAL_DB = 99.0
"""What equal pictures are told to have; the true value is infinite, which JSON cannot say."""


def psnr_db(left: Image.Image, right: Image.Image) -> float:
    """Peak signal-to-noise ratio of two RGB pictures of one size, at most `EQUAL_DB`.

    One level of difference in every value is 48 dB; 30 dB is plain to see.
    """
    squares = ImageStat.Stat(ImageChops.difference(left, right)).sum2
    mean = sum(squares) / (len(squares) * left.width * left.height)
    return EQUAL_DB if mean == 0 else min(EQUAL_DB, 10 * math.log10(255**2 / mean))
