"""Profiles: what each model family wants, read from the data files in `node/profiles` and from sidecars beside models."""

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError, model_validator

from common.images_api import Preset, Quality, Size
from node.engine_names import EngineName
from node.pipeline_classes import Family
from node.presets import CACHES, StepCache
from node.sdcpp_files import Component
from node.traits import Traits, usual_profile

PROMPT_SLOT = "{prompt}"


def _size(value: Any) -> Any:
    return Size.parse(value) if isinstance(value, str) else value


SizeText = Annotated[Size, BeforeValidator(_size), PlainSerializer(str)]
Sampler = Literal["checkpoint", "euler", "euler-a", "dpmpp-2m-karras", "ddim", "lcm"]
"""Denoising solvers; "checkpoint" is the one the checkpoint itself names."""
Dtype = Literal["float32", "float16", "bfloat16"]


class Profile(BaseModel):
    """Everything a model family wants, and the limits a request is held to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    family: Family
    licence: str
    """What the weights' licence is called; shown to clients."""
    commercial_use: bool
    """False where the licence forbids it."""

    sampler: Sampler
    timestep_spacing: Literal["leading", "trailing", "linspace"] | None = None
    """Overrides the checkpoint's own; None leaves it."""
    default_steps: int = Field(ge=1)
    """Forward passes of the denoiser, not what a library's argument happens to be called."""
    min_steps: int = Field(ge=1)
    max_steps: int = Field(le=200)
    quality_steps: dict[Quality, int]
    """Steps for each quality but `auto`, which is `default_steps`."""

    default_guidance: float = Field(ge=0)
    min_guidance: float = Field(ge=0)
    max_guidance: float = Field(le=30)
    natural_guidance: float | None = None
    """Guidance is at most this under style `natural`; None where style has no effect."""

    presets: dict[Preset, StepCache] = Field(default_factory=dict)
    """What each preset but `full` does; those that are absent are refused."""
    default_preset: Preset = Preset.FULL
    """Of requests that name none."""

    true_cfg: Literal["none", "guidance", "beside"] = "none"
    """What `true_cfg_scale` is: without effect; another name of `guidance_scale`; or classifier-free guidance beside the
    one the model was taught as an input, off unless asked for and within the same limits."""

    edit_strength: float = Field(default=0.75, gt=0, le=1)
    """Of an edit without a mask (llmlb's value, which its users know)."""
    faithful_strength: float = Field(default=0.5, gt=0, le=1)
    """Of the same with `input_fidelity` high."""
    inpaint_strength: float = Field(default=1.0, gt=0, le=1)
    """Of an edit with a mask."""
    variation_strength: float = Field(default=0.6, gt=0, le=1)
    """Of a variation, which has no prompt to go by."""

    default_size: SizeText
    size_step_px: int = Field(ge=1)
    """Pictures are drawn at multiples of this and cut to the size asked for."""
    min_side_px: int = Field(ge=1)
    max_side_px: int = Field(le=16384)
    max_pixels: int = Field(ge=1)

    prompt_template: str = PROMPT_SLOT
    """The text the model sees; `{prompt}` stands for the client's."""
    default_negative_prompt: str = ""
    """Used when the client sends none and the model takes one."""
    max_prompt_tokens: int = Field(ge=1)
    """Tokens the text encoder reads; the rest of a longer prompt is cut off, and the answer says so."""
    prompt_weights: bool = False
    """Whether `(word:1.3)` in a prompt is a weight, and a prompt of any length is read: CLIP families only. Elsewhere, and
    where this is switched off, the numbers are taken out of the prompt and told as without effect."""

    dtype: dict[Literal["cuda", "mps", "cpu"], Dtype]
    min_vram_bytes: int = Field(ge=0)
    """Device memory for one picture of the default size, weights included."""

    @property
    def takes_guidance(self) -> bool:
        """False for distilled models, whose guidance is fixed."""
        return self.max_guidance > self.min_guidance

    @property
    def takes_negative_prompt(self) -> bool:
        """Whether a negative prompt can have an effect: some requests guide away from it."""
        return self.takes_guidance or self.true_cfg == "beside"

    def guided(self, guidance: float, true_cfg_scale: float | None) -> bool:
        """Whether a run computes each step twice, with the prompt and with the negative one: above 1, as diffusers does."""
        return (true_cfg_scale or 0) > 1 if self.true_cfg == "beside" else self.takes_guidance and guidance > 1

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.quality_steps.keys() != set(Quality) - {Quality.AUTO}:
            raise ValueError("quality_steps must give steps for low, medium, high, xhigh and max")
        for steps in (self.default_steps, *self.quality_steps.values()):
            if not self.min_steps <= steps <= self.max_steps:
                raise ValueError(f"{steps} steps are outside {self.min_steps}..{self.max_steps}")
        if not self.min_guidance <= self.default_guidance <= self.max_guidance:
            raise ValueError(f"guidance {self.default_guidance} is outside {self.min_guidance}..{self.max_guidance}")
        if PROMPT_SLOT not in self.prompt_template:
            raise ValueError(f"prompt_template must hold {PROMPT_SLOT}")
        if self.prompt_weights and self.family not in (Family.SD15, Family.SDXL):
            raise ValueError("prompt_weights are for the CLIP families, sd15 and sdxl")
        if not {each.cache for each in self.presets.values()} <= CACHES.get(self.family, frozenset()):
            can = ", ".join(sorted(CACHES.get(self.family, ()))) or "none"
            raise ValueError(f"presets: step caches of {self.family.value} are: {can}")
        if Preset.FULL in self.presets or self.default_preset not in {Preset.FULL, *self.presets}:
            raise ValueError("`full` is no entry of presets, and default_preset is `full` or one of them")
        if fault := self.size_fault(self.default_size):
            raise ValueError(f"default_size: {fault}")
        return self

    def size_fault(self, size: Size) -> str | None:
        """Why a picture of this size cannot be made; None when it can."""
        for name, side_px in (("width", size.width_px), ("height", size.height_px)):
            if not self.min_side_px <= side_px <= self.max_side_px:
                return f"{name} must be {self.min_side_px} to {self.max_side_px} pixels."
        if size.pixels > self.max_pixels:
            return f"{size.pixels:,} pixels are above this model's limit of {self.max_pixels:,}."
        return None

    def nearest_size(self, size: Size) -> Size:
        """`size`, or the one of about its shape that lies within the limits: what `auto` means for an uploaded picture."""
        shrink = min(
            1.0,
            self.max_side_px / max(size.width_px, size.height_px),
            (self.max_pixels / size.pixels) ** 0.5,
        )
        sides = [max(self.min_side_px, int(side_px * shrink)) for side_px in (size.width_px, size.height_px)]
        step = self.size_step_px
        # Drawn sizes are rounded up: a size near the limit is rounded down first, so that the drawn one stays within.
        sides = [side if shrink == 1.0 else max(self.min_side_px, side // step * step) for side in sides]
        return Size(sides[0], sides[1])

    def rendered(self, prompt: str) -> str:
        """The template with the client's prompt in it. Plain replacement: braces in a prompt mean nothing."""
        return self.prompt_template.replace(PROMPT_SLOT, prompt)


class Sidecar(BaseModel):
    """What an operator says about one checkpoint: `aquatint.toml` in its folder, or `<file>.toml` beside it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str | None = Field(default=None, min_length=1, max_length=200, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$")
    """The public name."""
    profile: str | None = None
    """Name of one of the profiles, where the files alone cannot tell (fine-tunes)."""
    config: str | None = None
    """For a single file that diffusers runs: the folder of its configs, relative to the file."""
    engine: EngineName | None = None
    """Which engine runs it; None lets the node choose among those that can."""
    components: dict[Component, str] = Field(default_factory=dict)
    """For a single file that sd.cpp runs: its text encoders and autoencoder, relative to the file."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Fields of the profile that are otherwise for this model."""


def read_sidecar(values: Mapping[str, Any]) -> Sidecar:
    """What a sidecar file says, as a type. Raises: ValueError: unknown keys, or an unknown profile."""
    sidecar = Sidecar.model_validate(values)
    if sidecar.profile is not None and sidecar.profile not in profiles():
        raise ValueError(f"there is no profile {sidecar.profile!r}; there are {', '.join(sorted(profiles()))}")
    return sidecar


@cache
def profiles() -> dict[str, Profile]:
    """Every profile that ships with the node, by name."""
    found = {}
    for file in files("node.profiles").iterdir():
        if file.name.endswith(".toml"):
            profile = Profile.model_validate(tomllib.loads(file.read_text("utf-8")))
            found[profile.name] = profile
    return found


def choose_profile(family: Family, *, traits: Traits, sidecar: Sidecar) -> Profile:
    """The profile of a checkpoint: the one its sidecar names, else by its family and its configs.

    Raises: ValueError: the sidecar's profile is for another family, or an override is not valid.
    """
    profile = profiles()[sidecar.profile or usual_profile(family, traits)]
    if profile.family is not family:
        raise ValueError(f"profile {profile.name!r} is for {profile.family.value}, the checkpoint is {family.value}")
    if not sidecar.overrides:
        return profile
    if fixed := sidecar.overrides.keys() & {"name", "family"}:
        raise ValueError(f"{', '.join(sorted(fixed))} cannot be overridden")
    try:
        return Profile.model_validate(profile.model_dump(mode="json") | sidecar.overrides)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise ValueError(f"overrides: {faults}") from None
