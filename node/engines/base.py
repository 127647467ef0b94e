"""What an engine is: the orders it takes, what it gives back, and the errors it may raise."""

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

from PIL import Image

from common.errors import AquatintError, ControlMismatch, EngineFailed, LoraMismatch, OutOfDeviceMemory, RunCancelled
from common.images_api import ControlKind, OutputFormat, Preprocess, Preset, Size
from node.checkpoints import Checkpoint
from node.extras import Place
from node.masks import Canvas
from node.offload import Offload
from node.profile import Profile

__all__ = [
    "ControlMismatch",
    "ControlUse",
    "Engine",
    "EngineFailed",
    "Entrance",
    "ImagePromptUse",
    "LoadOrder",
    "LoraMismatch",
    "LoraUse",
    "Made",
    "Member",
    "Method",
    "OnPreview",
    "OnStep",
    "OutOfDeviceMemory",
    "PassTime",
    "RunCancelled",
    "RunSpec",
    "SharingEngine",
    "SteppingEngine",
    "UpscaleUse",
]

OnStep = Callable[[int, int], None]
"""Called after each step with (steps done, steps in all), over every image of a run. Raises RunCancelled to stop it."""
OnPreview = Callable[[int, Image.Image], None]
"""Called with (number of the preview from 0, RGB of `RunSpec.size`) while a picture is being made."""


class Method(StrEnum):
    """How a picture comes to be."""

    TEXT_TO_IMAGE = "text-to-image"
    IMAGE_TO_IMAGE = "image-to-image"
    """From a noised input: an edit without a mask, or a variation (then without a prompt)."""
    INPAINT = "inpaint"
    """Like it, within a mask; outside it the input's pixels stay."""
    IMAGE_PROMPT = "image-prompt"
    """From noise, a picture taking the place of the prompt."""
    EDIT = "edit"
    """From noise, seeing the inputs and told what to do with them; a variation is told so by a fixed sentence."""


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """One checkpoint to bring onto the device."""

    model: str
    """The public name it will be called by."""
    checkpoint: Checkpoint
    """Inspected right before: the engine opens its files without looking again."""
    profile: Profile
    dtype: str
    """float32, float16 or bfloat16."""
    loras: tuple[Place, ...] = ()
    """Those that runs of it may name."""
    controls: tuple[Place, ...] = ()
    """The same of ControlNets."""
    upscalers: tuple[Place, ...] = ()
    """The same of upscaling models, which are for every model."""
    image_prompt: tuple[Place, ...] = ()
    """The adapter and the encoder by which a picture takes the place of its prompts; none where there are none."""
    tiny_vae: Place | None = None
    """The autoencoder of its previews; None has its own draw them."""
    offload: Offload = Offload.NONE

    @property
    def device_bytes(self) -> int:
        """What its weights take of the device."""
        return self.checkpoint.device_bytes(self.dtype, self.offload)


@dataclass(frozen=True, slots=True)
class LoraUse:
    """A LoRA of a run: which, exactly, and how strongly."""

    name: str
    scale: float
    """0 leaves the picture as it is, bit for bit."""
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlUse:
    """A ControlNet of a run: which, exactly, by what picture, how strongly and how long."""

    name: str
    kind: ControlKind | None
    scale: float
    """0 leaves the picture as it is, bit for bit."""
    start: float
    end: float
    """The shares of the steps between which it guides."""
    preprocess: Preprocess
    sha256: str
    image_sha256: str
    """Of the picture as it was sent."""
    picture: Image.Image | None = field(default=None, repr=False)
    """RGB of `RunSpec.size`, as the ControlNet sees it. Not part of the wire form: pixels go beside it."""

    def to_json(self) -> dict[str, Any]:
        """Its wire form, and what is kept of it."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "picture"}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        kind = None if values["kind"] is None else ControlKind(values["kind"])
        return cls(**values | {"kind": kind, "preprocess": Preprocess(values["preprocess"])})


@dataclass(frozen=True, slots=True)
class ImagePromptUse:
    """What a picture takes the place of the prompt by."""

    adapter: str
    adapter_sha256: str
    encoder: str
    encoder_sha256: str
    scale: float = 1.0
    """How much its tokens count beside those of the prompt: at 1 as its maker has it where there are no words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpscaleUse:
    """How a run's pictures are made larger."""

    by: float
    method: str
    """`latent`, or the name of an upscaling model."""
    strength: float | None
    """Of the second pass; None where there is none."""
    size: Size
    """Of the file."""
    drawn: Size
    """Of what a second pass draws."""
    sha256: str | None = None
    """Of the upscaling model."""

    def to_json(self) -> dict[str, Any]:
        """Its wire form, and what is kept of it."""
        return asdict(self) | {"size": str(self.size), "drawn": str(self.drawn)}

    @classmethod
    def from_json(cls, values: dict[str, Any] | None) -> Self | None:
        """Read what `to_json` wrote; None stays."""
        if values is None:
            return None
        return cls(**values | {"size": Size.parse(values["size"]), "drawn": Size.parse(values["drawn"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """A request after every check, with every choice made: enough to make the same pictures again."""

    model: str
    prompt: str
    """The rendered text the model sees."""
    negative_prompt: str
    """Empty where it has no effect."""
    seeds: tuple[int, ...]
    """One a picture."""
    drawn: Size
    """The size the model draws: the next legal multiple."""
    size: Size
    """What was asked for, cut from the middle of the drawn picture: the size of the file unless it is made larger."""
    steps: int
    """Forward passes of the denoiser for one picture."""
    guidance: float
    sampler: str
    timestep_spacing: str | None
    output_format: OutputFormat
    output_compression: int | None
    quality: str
    """The effective one, never `auto`."""
    embed_parameters: bool
    """Whether the file says how it was made."""
    method: Method = Method.TEXT_TO_IMAGE
    strength: float | None = None
    """How much of the denoising is done: 0 keeps the input, 1 forgets it. None where nothing starts from an input."""
    true_cfg_scale: float | None = None
    """Classifier-free guidance beside an embedded one; None where there is none of it."""
    feather_px: int = 0
    """Soft edge inside the mask."""
    previews: int = 0
    """Partial pictures told while the first picture is made."""
    preset: Preset = Preset.FULL
    """Which parts of the steps are computed, by the profile."""
    loras: tuple[LoraUse, ...] = ()
    """Applied together, in any method."""
    controls: tuple[ControlUse, ...] = ()
    """The same."""
    image_prompt: ImagePromptUse | None = None
    """For the method of that name."""
    upscale: UpscaleUse | None = None
    """What is done to the pictures when they are made."""

    @property
    def forwards(self) -> int:
        """Steps really made for one picture: with an input, the last `strength` of them (diffusers' own rule)."""
        return self.steps if self.strength is None else min(int(self.steps * self.strength), self.steps)

    @property
    def preview_steps(self) -> dict[int, int]:
        """Steps after which a preview is due -> its number. Even over the steps, none at the end, where the picture comes."""
        count = min(self.previews, max(0, self.forwards - 1))
        return {round((index + 1) * self.forwards / (count + 1)): index for index in range(count)}

    @property
    def work_units(self) -> float:
        """Megapixel-steps of the whole run: what predictions are made in."""
        first = self.drawn.pixels / 1e6 * self.forwards * len(self.seeds)
        return first if self.second_pass is None else first + self.second_pass.work_units

    @property
    def final_size(self) -> Size:
        """The size of the file."""
        return self.size if self.upscale is None else self.upscale.size

    @property
    def largest_drawn(self) -> Size:
        """The largest picture that the model itself has to make."""
        return self.size if self.second_pass is None else self.second_pass.size

    @property
    def second_pass(self) -> "RunSpec | None":
        """The pass over the enlarged pictures: the same run from those, at their size. None where there is none."""
        use = self.upscale
        if use is None or use.strength is None:
            return None
        controls = tuple(_at_size(control, use.size) for control in self.controls)
        return replace(
            self,
            method=Method.IMAGE_TO_IMAGE,
            strength=use.strength,
            size=use.size,
            drawn=use.drawn,
            controls=controls,
            previews=0,
            upscale=None,
        )

    @property
    def total_steps(self) -> int:
        """Steps of the whole run, over every pass and picture."""
        first = self.forwards * len(self.seeds)
        return first if self.second_pass is None else first + self.second_pass.total_steps

    def to_json(self) -> dict[str, Any]:
        """Its wire form between node and worker."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        loras = [asdict(each) for each in self.loras]
        controls = [each.to_json() for each in self.controls]
        lists = {"seeds": list(self.seeds), "loras": loras, "controls": controls}
        values["image_prompt"] = None if self.image_prompt is None else asdict(self.image_prompt)
        values["upscale"] = None if self.upscale is None else self.upscale.to_json()
        return values | {"drawn": str(self.drawn), "size": str(self.size)} | lists

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Read what `to_json` wrote."""
        return cls(
            **values
            | {
                "drawn": Size.parse(values["drawn"]),
                "size": Size.parse(values["size"]),
                "seeds": tuple(values["seeds"]),
                "loras": tuple(LoraUse(**each) for each in values["loras"]),
                "controls": tuple(map(ControlUse.from_json, values["controls"])),
                "image_prompt": None if values["image_prompt"] is None else ImagePromptUse(**values["image_prompt"]),
                "upscale": UpscaleUse.from_json(values["upscale"]),
                "output_format": OutputFormat(values["output_format"]),
                "method": Method(values["method"]),
                "preset": Preset(values["preset"]),
            }
        )


def _at_size(control: ControlUse, size: Size) -> ControlUse:
    if control.picture is None:
        return control
    return replace(control, picture=control.picture.resize((size.width_px, size.height_px), Image.Resampling.LANCZOS))


@dataclass(frozen=True, slots=True)
class Made:
    """The pictures of one run, in the order of its seeds."""

    images: Sequence[Image.Image]
    """RGB, each of `RunSpec.final_size`."""
    timings_s: dict[str, float] = field(default_factory=dict)
    """Seconds by phase: encode (the prompt), denoise, decode."""
    prompt_tokens: int = 0
    """Tokens of the prompt as the model's own tokenizer counts them, without marks of beginning and end; 0 where the
    engine does not tell."""
    prompt_truncated: bool = False
    """True when the text encoder could not read the whole prompt."""
    sampler: str = ""
    """The class of the solver that ran."""
    lora_layers: dict[str, int] = field(default_factory=dict)
    """Layers of the model that each LoRA changed, by its name; none at scale 0."""
    vae_tiled: bool = False
    """True when memory ran out and the autoencoder worked in tiles the second time, which changes the picture a little."""
    batch: int = 1
    """Pictures, of this run and others, in the largest pass that made some of these."""
    passes: tuple["PassTime", ...] = ()
    """What passes took that began for this run; empty for a run that was made alone."""
    own_s: float | None = None
    """Seconds of the device that were spent on this run, of those it shared its part; None where all of them were its own."""


class PassTime(NamedTuple):
    """One pass, as it is learned from."""

    pictures: int
    seconds: float | None
    """From its first step to its last picture; None when it did not fit the memory."""


@dataclass(frozen=True, slots=True)
class Member:
    """One of several runs that share passes.

    Their specs are equal but for prompts, seeds, previews and what is done to the finished picture (see
    node.batching.shared_key), and none has an input.
    """

    spec: RunSpec
    on_step: OnStep
    """Raises RunCancelled when this run is not wanted any more; the others go on."""
    on_preview: OnPreview


class Engine(Protocol):
    """Runs checkpoints on one device. Called from one thread only."""

    interruptible: bool
    """Whether a run ends where `on_step` raises. Where not it goes on to its end, and only the end of the process is sooner."""

    def load(self, order: LoadOrder) -> None:
        """Bring a checkpoint onto the device under its model name.

        Raises: CheckpointRefused, OutOfDeviceMemory, EngineFailed.
        """
        ...

    def told(self) -> dict[str, dict[str, str]]:
        """By loaded model, how it computes, in words; empty where there is no choice. Called from any thread."""
        ...

    def unload(self, model: str) -> None:
        """Give its memory back. Unknown names are fine: the aim is that it is not there."""
        ...

    def free_caches(self) -> None:
        """Give back memory that is kept for runs to come and is no model's."""
        ...

    def drop_loras(self, model: str, sha256s: Sequence[str]) -> None:
        """Give back the memory of LoRAs that lie beside a model for runs to come; which stay there is not its to decide."""
        ...

    def generate(self, spec: RunSpec, canvas: Canvas | None, on_step: OnStep, on_preview: OnPreview) -> Made:
        """Make the pictures of a run whose model is loaded. canvas: of size `RunSpec.size`, where the method needs one.

        Raises: RunCancelled (from `on_step`), OutOfDeviceMemory, EngineFailed. The pipeline stays usable after each.
        """
        ...


@runtime_checkable
class SharingEngine(Engine, Protocol):
    """One that can make pictures of several runs in one pass."""

    def generate_together(self, members: Sequence[Member], batch: int) -> Sequence[Made | AquatintError]:
        """Make the pictures of several runs in passes of at most `batch` pictures: of each run its pictures or its error.

        Raises: EngineFailed: the model is not loaded.
        """
        ...


class Entrance(Protocol):
    """Where runs come in and go out while others are being made. Asked and told between two steps, by the engine's thread."""

    @property
    def batch(self) -> int:
        """At most so many pictures in a pass, from now on."""
        ...

    def arrived(self) -> Sequence[Member]:
        """Those that have come since it was asked last; it does not wait.

        Their specs may differ in steps, guidance and sampler as well, and in size where a family draws sizes in one pass or
        a pass is of one picture.
        """
        ...

    def wait(self, others: Collection[Future[Any]]) -> None:
        """Returns when one more has come, or one of some others is done."""
        ...

    def ended(self, member: Member, outcome: Made | AquatintError) -> None:
        """One is made, or never will be. Returns at once, for the others wait."""
        ...


@runtime_checkable
class SteppingEngine(SharingEngine, Protocol):
    """One that lets runs come and go between two steps of others."""

    def generate_in_steps(self, spec: RunSpec, entrance: Entrance) -> None:
        """Make the pictures of whoever arrives until nobody is left. spec: of one of them, for what all have in common.

        Raises: EngineFailed: the model is not loaded, or of a family that is not made so.
        """
        ...
