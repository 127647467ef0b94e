"""A request for images after it was read from the wire: typed, bounded, still ignorant of any model."""

import hashlib
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any, NamedTuple, Self

from common.errors import UserImageError

MAX_SEED = 2**32 - 1
"""The largest seed: what A1111, ComfyUI and stable-diffusion.cpp take as well."""
FOR_THE_ROUTER = ("cache", "dry_run", "webhook_url")
"""Fields that say what the router is to do with a request, and nothing about its pictures."""


class Task(StrEnum):
    """What is asked for."""

    GENERATION = "generation"
    EDIT = "edit"
    VARIATION = "variation"


class Quality(StrEnum):
    """OpenAI's present names; `standard` and `hd` of old clients are read as medium and high."""

    AUTO = "auto"
    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    XHIGH = "xhigh"
    MAX = "max"


class Style(StrEnum):
    """DALL-E 3's styles, mapped to guidance by a model's profile."""

    VIVID = "vivid"
    NATURAL = "natural"


class Preset(StrEnum):
    """How much of the steps is computed: all, or as much as a model's profile says of a quicker preset."""

    FULL = "full"
    BALANCED = "balanced"
    FAST = "fast"


class OutputFormat(StrEnum):
    """File formats a picture can leave in."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"

    @property
    def media_type(self) -> str:
        """Its Content-Type."""
        return f"image/{self.value}"

    @property
    def extension(self) -> str:
        """Its file name ending, without the dot."""
        return "jpg" if self is OutputFormat.JPEG else self.value


class ResponseFormat(StrEnum):
    """How the pictures come back."""

    URL = "url"
    B64_JSON = "b64_json"


@dataclass(frozen=True, slots=True)
class Size:
    """Width and height of a picture in pixels, both 1..16384."""

    width_px: int
    height_px: int

    def __str__(self) -> str:
        return f"{self.width_px}x{self.height_px}"

    @property
    def pixels(self) -> int:
        """Area in pixels."""
        return self.width_px * self.height_px

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `WIDTHxHEIGHT`: two plain ASCII numbers of at most five digits.

        Raises: UserImageError: any other text.
        """
        width, separator, height = text.partition("x")
        numbers = [n for n in (width, height) if n.isascii() and n.isdigit() and len(n) <= 5 and n[0] != "0"]
        if not separator or len(numbers) != 2 or max(map(int, numbers)) > 16384:
            raise UserImageError(f"Invalid size {text[:40]!r}. Expected WIDTHxHEIGHT, for example '1024x1024'.", param="size")
        return cls(int(width), int(height))

    def rounded_up_to(self, step_px: int) -> "Size":
        """The smallest size at least this large whose sides are multiples of `step_px`."""
        return Size(-(-self.width_px // step_px) * step_px, -(-self.height_px // step_px) * step_px)

    def within(self, pixels: int, step_px: int) -> "Size":
        """The largest size of nearly this shape with at most so many pixels; its sides are multiples of `step_px`, or that."""
        scale = min(1.0, math.sqrt(pixels / self.pixels))
        width_px, height_px = (max(step_px, int(side * scale) // step_px * step_px) for side in (self.width_px, self.height_px))
        return Size(width_px, height_px)


class InputFidelity(StrEnum):
    """How closely an edit keeps to its input; a model's profile turns it into strength."""

    LOW = "low"
    HIGH = "high"


Pieces = tuple[bytes, ...]
"""A file as it came over the wire: megabytes, which a router passes on and never needs in one piece."""


@dataclass(frozen=True, slots=True)
class Upload:
    """An uploaded picture: known by content to be of this format and size, not decoded yet."""

    name: str
    """The field it came in, for messages."""
    pieces: Pieces = field(repr=False)
    format: OutputFormat
    width_px: int
    """As stored in the file, before turning by EXIF."""
    height_px: int

    @property
    def content(self) -> bytes:
        """The file: a copy, unless it came in one piece."""
        return b"".join(self.pieces)

    @property
    def size_bytes(self) -> int:
        """Of the file."""
        return sum(map(len, self.pieces))

    def sha256(self) -> bytes:
        """The digest of the file."""
        digest = hashlib.sha256()
        for piece in self.pieces:
            digest.update(piece)
        return digest.digest()


@dataclass(frozen=True, slots=True)
class LoraAsk:
    """One LoRA that a request wants."""

    name: str
    """Its name in the catalog of the node, one of its aliases, the beginning of its sha256 (10 digits or more), or its AIR."""
    scale: float = 1.0
    """-4..4; 0 leaves the picture as it is."""
    trigger: bool = False
    """Whether its trigger words are put behind the prompt."""


class ControlKind(StrEnum):
    """What a picture that guides a run shows."""

    CANNY = "canny"
    SCRIBBLE = "scribble"
    LINEART = "lineart"
    DEPTH = "depth"
    POSE = "pose"


class Preprocess(StrEnum):
    """What is done to such a picture before it guides."""

    NONE = "none"
    """Nothing: it shows edges, depths or poses already."""
    CANNY = "canny"
    """Its edges are drawn, white on black."""


@dataclass(frozen=True, slots=True)
class ControlAsk:
    """One picture that a request wants to be guided by."""

    image: Upload
    name: str | None = None
    """Of a ControlNet in the catalog of the node; None takes the first of the kind."""
    kind: ControlKind | None = None
    scale: float = 1.0
    """0..2; 0 leaves the picture as it is."""
    start: float = 0.0
    """The share of the steps after which it begins to guide."""
    end: float = 1.0
    """The share of the steps after which it no longer guides."""
    preprocess: Preprocess = Preprocess.NONE

    def to_json(self) -> dict[str, Any]:
        """Its wire form; the picture goes beside it as a file."""
        values = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "image"}
        return {name: value for name, value in values.items() if value is not None}


LATENT = "latent"
"""The upscaler that is part of every model."""
LATENT_STRENGTH = 0.5
"""Of its second pass where a client does not say: what is there stays, and details are drawn anew."""


@dataclass(frozen=True, slots=True)
class UpscaleAsk:
    """How a request wants its picture made larger."""

    by: float = 2.0
    """1..4"""
    method: str = LATENT
    """`latent`, or the name of an upscaling model."""
    strength: float | None = None
    """Of a second pass over the larger picture. None: the usual one for `latent`, none for a model."""

    @property
    def second_pass(self) -> float | None:
        """The strength of the second pass; None where there is none."""
        return LATENT_STRENGTH if self.strength is None and self.method == LATENT else self.strength


class ImageRequest(NamedTuple):
    """One request, as the wire gave it. None means that the client left the choice to the model's profile.

    A named tuple, because a router makes several of each: of so many fields a frozen dataclass takes four times as long, and
    six times where it is replaced.
    """

    task: Task
    prompt: str
    model: str | None = None
    n: int = 1
    size: Size | None = None
    quality: Quality = Quality.AUTO
    style: Style | None = None
    output_format: OutputFormat = OutputFormat.PNG
    output_compression: int | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None
    safety_identifier: str | None = None
    negative_prompt: str | None = None
    seed: int | None = None
    exact: bool | None = None
    """Whether its pictures are made alone, one after another: see `made_exactly`."""
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    true_cfg_scale: float | None = None
    sampler: str | None = None
    preset: Preset | None = None
    loras: tuple[LoraAsk, ...] = ()
    """Those of the field; the prompt may name more."""
    control: tuple[ControlAsk, ...] = ()
    upscale: UpscaleAsk | None = None
    strength: float | None = None
    input_fidelity: InputFidelity | None = None
    mask_feather_px: int = 0
    stream: bool = False
    partial_images: int = 0
    embed_metadata: bool = True
    cache: bool = True
    dry_run: bool = False
    webhook_url: str | None = None
    """For the router alone, as all of FOR_THE_ROUTER."""
    images: tuple[Upload, ...] = ()
    mask: Upload | None = None
    ignored: tuple[str, ...] = ()
    """Names of keys that had no effect, told to the client in `x-ignored-params`."""

    @property
    def uploads(self) -> list[tuple[str, Upload]]:
        """Every picture that came with it, and what it is for."""
        mask = [] if self.mask is None else [("mask", self.mask)]
        return [*(("image", each) for each in self.images), *mask, *(("control", each.image) for each in self.control)]

    @property
    def effective_response_format(self) -> ResponseFormat:
        """What was asked for, else url for the `dall-e-*` names, whose old clients read urls, and b64_json for all others."""
        if self.response_format is not None:
            return self.response_format
        if self.model is not None and self.model.startswith("dall-e-"):
            return ResponseFormat.URL
        return ResponseFormat.B64_JSON

    @property
    def made_exactly(self) -> bool:
        """Whether the same request must give the same bytes again, which pictures made in one pass with others do not.

        Who names a seed wants that picture again, unless the request says otherwise.
        """
        return self.seed is not None if self.exact is None else self.exact

    def with_seed(self) -> Self:
        """The same request with a seed drawn if it has none, so that a second try makes the same picture.

        Image i is made from seed + i, so a drawn seed leaves room for n of them. A seed that nobody named makes nothing exact.
        """
        if self.seed is not None:
            return self
        seed, exact = self._drawn()
        return self._replace(seed=seed, exact=exact)

    def settled(self, model: str) -> Self:
        """The same request for the model behind its name, with a seed as `with_seed` gives it one.

        The default for `response_format` goes by the name that the client used, so it is fixed before that is gone.
        """
        # Not by `_replace`, which makes a call for each field there is.
        values: list[Any] = list(self)
        values[_MODEL], values[_RESPONSE_FORMAT] = model, self.effective_response_format
        if self.seed is None:
            values[_SEED], values[_EXACT] = self._drawn()
        return type(self)._make(values)

    def _drawn(self) -> tuple[int, bool]:
        """A seed, and whether the pictures are made exactly, which is not to hang on its having one now."""
        # Of eight bytes, so that none of the four that a seed has comes noticeably more often than another.
        return int.from_bytes(os.urandom(8)) % (MAX_SEED - self.n + 1), self.made_exactly

    def ignoring(self, names: Iterable[str]) -> Self:
        """The same request with more names told as ignored."""
        return self._replace(ignored=tuple(dict.fromkeys((*self.ignored, *names))))

    def to_json(self) -> dict[str, Any]:
        """The canonical wire form, without files and without what says nothing but the default.

        It is what the router sends to a node, and what the catalog keeps.
        """
        values: dict[str, Any] = {name: value for place, name, usual in _SENT if (value := self[place]) != usual}
        if self.size is not None:
            values["size"] = str(self.size)
        if self.loras:
            values["loras"] = [asdict(each) for each in self.loras]
        if self.control:
            values["control"] = [each.to_json() for each in self.control]
        if self.upscale is not None:
            values["upscale"] = asdict(self.upscale)
        return values


_MODEL, _RESPONSE_FORMAT, _SEED, _EXACT = map(ImageRequest._fields.index, ("model", "response_format", "seed", "exact"))
_USUAL = ImageRequest._field_defaults
_SENT = [
    (place, name, _USUAL.get(name))
    for place, name in enumerate(ImageRequest._fields)
    if name not in ("task", "ignored", "images", "mask", *FOR_THE_ROUTER)
]
"""The fields that `to_json` tells, by their places, each with what it is when nothing is said of it."""
