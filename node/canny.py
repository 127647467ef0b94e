"""Edges of a picture, as ControlNets of the kind `canny` were taught to read them: white lines, a pixel wide, on black.

The algorithm is J. Canny's ("A Computational Approach to Edge Detection", IEEE TPAMI 8(6), 1986) in the form of OpenCV's
`Canny(image, 100, 200)`, which ControlNet's own training used: Sobel's 3 x 3 gradients of the channel that changes most,
|gx| + |gy| for their size, directions in four sectors, and no smoothing before. Written from that description in whole
numbers, so the same picture gives the same edges everywhere.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LOW, HIGH = 100, 200
"""Sizes of a gradient: from the second on it is an edge, above the first only where it continues one."""
_TAN_22 = round((2**0.5 - 1) * 2**15)
"""Of 22.5 degrees, in units of 2^-15."""
Ints = NDArray[np.int32]
Flags = NDArray[np.bool_]


def canny(picture: Image.Image) -> Image.Image:
    """RGB -> RGB of the same size, every pixel 255 or 0 in all channels."""
    gx, gy = _gradient(np.asarray(picture.convert("RGB"), np.int32))
    size = np.abs(gx) + np.abs(gy)
    ridge = _ridge(gx, gy, size) & (size > LOW)
    edges = _continued(ridge, ridge & (size > HIGH))
    return Image.fromarray(np.where(edges, np.uint8(255), np.uint8(0))).convert("RGB")


def _gradient(pixels: Ints) -> tuple[Ints, Ints]:
    """(height, width, 3) -> derivatives along x and y (height, width), of each pixel's steepest channel."""
    p = np.pad(pixels, ((1, 1), (1, 1), (0, 0)), "edge")
    columns = p[:-2] + 2 * p[1:-1] + p[2:]
    rows = p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]
    gx, gy = columns[:, 2:] - columns[:, :-2], rows[2:] - rows[:-2]
    steepest = (np.abs(gx) + np.abs(gy)).argmax(axis=2)[..., None]
    return np.take_along_axis(gx, steepest, 2)[..., 0], np.take_along_axis(gy, steepest, 2)[..., 0]


def _ridge(gx: Ints, gy: Ints, size: Ints) -> Flags:
    """Where the gradient is larger than at both neighbours along its own direction. Of two equal ones the first counts."""
    p = np.pad(size, 1)

    def neighbour(down: int, right: int) -> Ints:
        return p[1 + down : p.shape[0] - 1 + down, 1 + right : p.shape[1] - 1 + right]

    # 64 bits: 1020 * 2^16 twice over is beyond 32.
    x, y = np.abs(gx).astype(np.int64), np.abs(gy).astype(np.int64) << 15
    level = y < x * _TAN_22
    upright = y > x * _TAN_22 + (x << 16)
    falling = (gx < 0) == (gy < 0)
    along_x = (size > neighbour(0, -1)) & (size >= neighbour(0, 1))
    along_y = (size > neighbour(-1, 0)) & (size >= neighbour(1, 0))
    down_right = (size > neighbour(-1, -1)) & (size > neighbour(1, 1))
    down_left = (size > neighbour(-1, 1)) & (size > neighbour(1, -1))
    return np.where(level, along_x, np.where(upright, along_y, np.where(falling, down_right, down_left)))


def _continued(ridge: Flags, strong: Flags) -> Flags:
    """The pixels of a ridge whose stretch of it, neighbours in all eight directions, has a strong one anywhere."""
    number = np.cumsum(ridge).reshape(ridge.shape) - 1
    pairs = [(number[here][both], number[there][both]) for here, there in _NEXT if (both := ridge[here] & ridge[there]).any()]
    stretch = _stretches(int(ridge.sum()), pairs)
    has_strong = np.zeros(len(stretch), np.bool_)
    has_strong[stretch[number[strong]]] = True
    kept = np.zeros_like(ridge)
    kept[ridge] = has_strong[stretch]
    return kept


_ALL, _BUT_FIRST, _BUT_LAST = slice(None), slice(1, None), slice(None, -1)
_NEXT = (
    # A pixel, and the next one to the right, below, and below to both sides.
    ((_ALL, _BUT_LAST), (_ALL, _BUT_FIRST)),
    ((_BUT_LAST, _ALL), (_BUT_FIRST, _ALL)),
    ((_BUT_LAST, _BUT_LAST), (_BUT_FIRST, _BUT_FIRST)),
    ((_BUT_LAST, _BUT_FIRST), (_BUT_FIRST, _BUT_LAST)),
)


def _stretches(count: int, pairs: list[tuple[NDArray[np.intp], NDArray[np.intp]]]) -> NDArray[np.intp]:
    """For each of `count` things the smallest number among those it is connected with.

    Each round joins every group to its smallest neighbour, so their number at least halves: a spiral of a million
    pixels takes no more than some twenty rounds.
    """
    group = np.arange(count)
    if not pairs:
        return group
    one, other = (np.concatenate(ends) for ends in zip(*pairs, strict=True))
    while True:
        low, high = np.minimum(group[one], group[other]), np.maximum(group[one], group[other])
        if (low == high).all():
            return group
        np.minimum.at(group, high, low)
        while ((above := group[group]) != group).any():
            group = above
