"""Finds upscaling models below the models folders and tells their shape from their tensors.

One is a `.safetensors` file in a folder called `upscale_models` (ComfyUI), `ESRGAN` or `RealESRGAN` (A1111). Of the many
kinds there are, this node runs the one that most are: RRDBNet, of ESRGAN and Real-ESRGAN, in the three ways its tensors
have been named.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from node.extras import Folders, Place, Sha256, check_place
from node.safetensors_header import CheckpointRefused, TensorEntry, read_header

FOLDERS = Folders(frozenset({"upscale_models", "esrgan", "realesrgan"}))
LATENT = "latent"
"""The method that needs no model: plain enlargement, and a second pass over it."""
MAX_BLOCKS, MAX_CHANNELS = 64, 256
"""The usual ones have 23 blocks of 64 channels; far more would hold the device for hours."""
_WRAPPED = ("params_ema.", "params.", "module.")
"""What trainers put before every name."""
_FIRST_NAMES = re.compile(
    r"model\.1\.sub\.(\d+)\.RDB(\d)\.(conv\d)\.0\.(weight|bias)|model\.(0|1\.sub\.\d+|\d+)\.(weight|bias)"
)
_SECOND_NAMES = (
    ("RRDB_trunk.", "body."),
    (".RDB", ".rdb"),
    ("trunk_conv.", "conv_body."),
    ("upconv", "conv_up"),
    ("HRconv.", "conv_hr."),
)
_UNSHUFFLED = {3: 1, 12: 2, 48: 4}
"""Channels of the first layer -> by how much a picture is folded before it, so that fewer pixels are computed on."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of one RRDBNet."""

    channels: int
    growth: int
    blocks: int
    doublings: int
    """How often it doubles the sides of what it is given."""
    unshuffle: int

    @property
    def scale(self) -> int:
        """By how much it makes a picture larger."""
        return (1 << self.doublings) // self.unshuffle


@dataclass(frozen=True, slots=True)
class UpscalerFile:
    """An upscaling model on disk that passed every check of its header."""

    name: str
    path: Path
    root: Path
    shape: Shape
    parameters: int

    @property
    def place(self) -> Place:
        """What a worker needs to find it."""
        return Place(self.name, self.path, self.root)

    @property
    def memory_bytes(self) -> int:
        """Bytes of its weights on a device: it computes in float32 everywhere."""
        return 4 * self.parameters


def inspect_upscaler(place: Place) -> UpscalerFile:
    """Check one file. Called at the scan and again right before a load.

    Raises: CheckpointRefused, naming the file; OSError.
    """
    check_place(place.path, place.root, "an upscaler's file name must end in .safetensors; pickle formats are never loaded")
    tensors = read_header(place.path)
    names = plain_names(tensors)
    shape = _shape({names[name]: entry for name, entry in tensors.items()})
    if isinstance(shape, str):
        raise CheckpointRefused(place.path, shape)
    return UpscalerFile(place.name, place.path, place.root, shape, sum(entry.elements for entry in tensors.values()))


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Each tensor's name -> its name in the newest way, as in `body.0.rdb1.conv1.weight`; those of others as they are."""
    bare = {name: _unwrapped(name) for name in names}
    # The first way numbers the layers behind the blocks: some that double, one at full size, and the last.
    numbers = sorted(
        {int(match[5]) for each in bare.values() if (match := _FIRST_NAMES.fullmatch(each)) and _plain_number(match)}
    )
    roles = [f"conv_up{at}" for at in range(1, len(numbers) - 1)] + ["conv_hr", "conv_last"]
    behind = dict(zip(numbers, roles, strict=False))
    return {name: _renamed(each, behind) for name, each in bare.items()}


def _unwrapped(name: str) -> str:
    for prefix in _WRAPPED:
        name = name.removeprefix(prefix)
    return name


def _plain_number(match: re.Match[str]) -> bool:
    return match[5] is not None and match[5] != "0" and "." not in match[5]


def _renamed(name: str, behind: Mapping[int, str]) -> str:
    match = _FIRST_NAMES.fullmatch(name)
    if match is None:
        for old, new in _SECOND_NAMES:
            name = name.replace(old, new)
        return name
    if match[1] is not None:
        return f"body.{match[1]}.rdb{match[2]}.{match[3]}.{match[4]}"
    if match[5] == "0":
        return f"conv_first.{match[6]}"
    layer = behind[int(match[5])] if _plain_number(match) else "conv_body"
    return f"{layer}.{match[6]}"


def _shape(tensors: Mapping[str, TensorEntry]) -> Shape | str:
    """The sizes of the net these tensors are; a text when they are none that can be run, saying why."""
    first, growing = tensors.get("conv_first.weight"), tensors.get("body.0.rdb1.conv1.weight")
    if first is None or growing is None or len(first.shape) != 4 or len(growing.shape) != 4:
        return "no RRDBNet (ESRGAN, Real-ESRGAN), which is what this node upscales with"
    blocks = len({name.split(".")[1] for name in tensors if name.startswith("body.")})
    doublings = sum(name.startswith("conv_up") and name.endswith(".weight") for name in tensors)
    unshuffle = _UNSHUFFLED.get(first.shape[1])
    shape = Shape(first.shape[0], growing.shape[0], blocks, doublings, unshuffle or 1)
    if blocks > MAX_BLOCKS or max(shape.channels, shape.growth) > MAX_CHANNELS or not 1 <= doublings <= 3:
        return "an RRDBNet beyond the sizes that this node runs"
    if unshuffle is None or shape.scale < 1:
        return f"an RRDBNet for pictures of {first.shape[1]} channels"
    expected = layers_of(shape)
    found = {name: entry.shape for name, entry in tensors.items()}
    wanted: dict[str, tuple[int, ...]] = {f"{name}.weight": (out, size, 3, 3) for name, (size, out) in expected.items()}
    wanted |= {f"{name}.bias": (out,) for name, (_, out) in expected.items()}
    if wrong := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
        return f"no plain RRDBNet: {len(wrong)} of its tensors are others ({wrong[0][:80]})"
    return shape


def layers_of(shape: Shape) -> dict[str, tuple[int, int]]:
    """Every convolution of a net, 3 x 3, by name: channels in, and channels out."""
    wide, growth = shape.channels, shape.growth
    layers = {"conv_first": (3 * shape.unshuffle**2, wide)}
    for block in range(shape.blocks):
        for dense in range(1, 4):
            for conv in range(1, 6):
                out = growth if conv < 5 else wide
                layers[f"body.{block}.rdb{dense}.conv{conv}"] = (wide + (conv - 1) * growth, out)
    layers |= dict.fromkeys(("conv_body", *(f"conv_up{at + 1}" for at in range(shape.doublings)), "conv_hr"), (wide, wide))
    return layers | {"conv_last": (wide, 3)}


@dataclass(frozen=True, slots=True)
class Upscalers:
    """Every upscaling model of a node, by name, and what was refused."""

    by_name: Mapping[str, UpscalerFile] = field(default_factory=dict)
    refused: tuple[CheckpointRefused, ...] = ()
    sha256: Sha256 = field(default_factory=Sha256)


def find_upscalers(roots: Sequence[Path]) -> Upscalers:
    """Look through the models folders. Of two with one name the first is taken, the other told as refused."""
    by_name, refused = FOLDERS.look_by_name(roots, inspect_upscaler, "upscaler", reserved=(LATENT,))
    return Upscalers(by_name, tuple(refused))
