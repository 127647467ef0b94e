"""RRDBNet, the network of ESRGAN and Real-ESRGAN (Wang et al., "ESRGAN: Enhanced Super-Resolution Generative Adversarial
Networks", 2018, section 3.1), and pictures made larger by it tile by tile.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from node.extras import Place
from node.upscalers import Shape, inspect_upscaler, layers_of, plain_names

TILE_PX, OVERLAP_PX, MARGIN_PX = 256, 32, 12
"""Sides of what is computed at once, how far neighbours reach into one another, and how much of that is of no use on either
side, for a network sees nothing beyond its tile. Between the margins they are blended."""
_SHARE = 0.2
"""Of what a residual path adds (section 3.1 calls it beta), and the slope of its activation below zero."""


class RRDBNet(nn.Module):
    """(N, 3, height, width), 0..1 -> the same `shape.scale` times as large. Layers are named as in Real-ESRGAN's files."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        for name, (size_in, size_out) in layers_of(shape).items():
            *path, last = name.split(".")
            owner: nn.Module = self
            for part in path:
                if not hasattr(owner, part):
                    owner.add_module(part, nn.Module())
                owner = getattr(owner, part)
            owner.add_module(last, nn.Conv2d(size_in, size_out, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        if self.shape.unshuffle > 1:
            x = functional.pixel_unshuffle(x, self.shape.unshuffle)
        first = x = self.get_submodule("conv_first")(x)
        for block in range(self.shape.blocks):
            x = x + _SHARE * self._dense(
                f"body.{block}.rdb3", self._dense(f"body.{block}.rdb2", self._dense(f"body.{block}.rdb1", x))
            )
        x = first + self.get_submodule("conv_body")(x)
        for doubling in range(self.shape.doublings):
            x = functional.interpolate(x, scale_factor=2, mode="nearest")
            x = _bent(self.get_submodule(f"conv_up{doubling + 1}")(x))
        out: Tensor = self.get_submodule("conv_last")(_bent(self.get_submodule("conv_hr")(x)))
        return out

    def _dense(self, name: str, x: Tensor) -> Tensor:
        """One dense block: every convolution sees what all before it gave."""
        seen = x
        for conv in range(1, 5):
            seen = torch.cat((seen, _bent(self.get_submodule(f"{name}.conv{conv}")(seen))), 1)
        out: Tensor = x + _SHARE * self.get_submodule(f"{name}.conv5")(seen)
        return out


def _bent(x: Tensor) -> Tensor:
    return functional.leaky_relu(x, _SHARE)


def load(place: Place, device: torch.device) -> RRDBNet:
    """The network of a file, in float32. Raises: CheckpointRefused; OSError."""
    file = inspect_upscaler(place)
    tensors = load_file(file.path)
    names = plain_names(tensors)
    with torch.device("meta"):
        net = RRDBNet(file.shape)
    net.load_state_dict({names[name]: tensor.float() for name, tensor in tensors.items()}, strict=True, assign=True)
    return net.eval().requires_grad_(False).to(device)


def enlarged(net: RRDBNet, picture: Image.Image, device: torch.device, before_tile: Callable[[], None]) -> Image.Image:
    """RGB -> RGB, `net.shape.scale` times as large. before_tile: called before each; what it raises ends the work.

    Tiles are blended over their overlap by weights that fall off linearly, so no seam shows; the same picture always
    gives the same bytes.
    """
    scale, fold = net.shape.scale, net.shape.unshuffle
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float()[None] / 255
    height_px, width_px = pixels.shape[-2:]
    # A picture is folded in whole squares only; its edge is repeated until it can be.
    pixels = functional.pad(pixels, (0, -width_px % fold, 0, -height_px % fold), mode="replicate")
    total = torch.zeros(3, pixels.shape[2] * scale, pixels.shape[3] * scale)
    weights = torch.zeros(1, *total.shape[1:])
    for rows in _spans(pixels.shape[2]):
        for columns in _spans(pixels.shape[3]):
            before_tile()
            made = net(pixels[..., rows, columns].to(device))[0].cpu()
            ramp = _ramp(made.shape[1], scale)[:, None] * _ramp(made.shape[2], scale)
            place = (slice(None), _times(rows, scale), _times(columns, scale))
            total[place] += made * ramp
            weights[place] += ramp
    mean = (total / weights)[:, : height_px * scale, : width_px * scale].clamp(0, 1)
    return Image.fromarray((mean * 255).round().byte().permute(1, 2, 0).numpy())


def _spans(side_px: int) -> Iterator[slice]:
    """Equal tiles that cover a side and reach into one another by OVERLAP_PX or more. All begin at multiples of four."""
    count = max(1, -(-(side_px - OVERLAP_PX) // (TILE_PX - OVERLAP_PX)))
    tile_px = min(side_px, TILE_PX)
    for number in range(count):
        begin = (side_px - tile_px) * number // max(1, count - 1) // 4 * 4 if number < count - 1 else side_px - tile_px
        yield slice(begin, begin + tile_px)


def _times(span: slice, scale: int) -> slice:
    return slice(span.start * scale, span.stop * scale)


def _ramp(side_px: int, scale: int) -> Tensor:
    """Weights along one side of a tile: next to nothing in its margins, where only the picture's own edge has no other."""
    place = torch.arange(side_px) + 0.5
    inside = torch.minimum(place, side_px - place) - MARGIN_PX * scale
    return inside.clamp(1e-6, (OVERLAP_PX - 2 * MARGIN_PX) * scale)
