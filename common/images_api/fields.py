"""The one table of request fields: what each route takes, under which names, and within which bounds.

Validation reads it, and so does the table in README. Order is the order of checks, which is OpenAI's:
model, prompt, n, then the rest, so that a request with two faults gets the answer a client expects.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from common.images_api.control import ControlList
from common.images_api.kinds import MAX_SIDE_PX, Boolean, Choice, Integer, JsonObject, Kind, Number, Refused, SizeText, Text
from common.images_api.loras import LoraList
from common.images_api.request import MAX_SEED, InputFidelity, OutputFormat, Preset, Quality, ResponseFormat, Style, Task
from common.images_api.upscale import UpscaleObject

MAX_PROMPT_CHARACTERS = 32_000
"""OpenAI's limit for its GPT image models."""
MAX_IMAGES = 10

_ALL = frozenset(Task)
_PROMPTED = frozenset({Task.GENERATION, Task.EDIT})
_WITH_INPUT = frozenset({Task.EDIT, Task.VARIATION})


class Background(StrEnum):
    """What may lie behind the subject."""

    AUTO = "auto"
    OPAQUE = "opaque"


class Complexity(StrEnum):
    """OpenAI's hint for its own models; accepted."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class Moderation(StrEnum):
    """OpenAI's moderation levels; accepted, as no moderation is built in."""

    AUTO = "auto"
    LOW = "low"


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a request, checked wherever it is sent."""

    name: str
    kind: Kind
    meaning: str
    aliases: tuple[str, ...] = ()
    tasks: frozenset[Task] = field(default=_ALL)
    keeps: bool = True
    """Whether the request carries it on."""
    told: bool = False
    """Whether a client that sent it is told that it had no effect."""
    names: tuple[str, ...] = field(init=False)
    """Its name and its aliases."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", (self.name, *self.aliases))


FIELDS: tuple[Field, ...] = (
    Field("model", Text(1, 256), "public name of the model, or an alias; the server's default when absent"),
    Field("prompt", Text(1, MAX_PROMPT_CHARACTERS), "what the picture shows", tasks=_PROMPTED),
    Field("n", Integer(1, MAX_IMAGES), "how many pictures"),
    Field("size", SizeText(), "size of the picture; `auto` is the model's own"),
    Field("width", Integer(1, MAX_SIDE_PX), "with `height`: wins over `size`", keeps=False),
    Field("height", Integer(1, MAX_SIDE_PX), "with `width`: wins over `size`", keeps=False),
    Field(
        "quality",
        Choice(Quality, former={"standard": Quality.MEDIUM, "hd": Quality.HIGH}),
        "number of steps, by the model's profile",
        tasks=_PROMPTED,
    ),
    Field("style", Choice(Style), "guidance, by the model's profile", tasks=frozenset({Task.GENERATION})),
    Field(
        "background",
        Choice(Background, refused={"transparent": "Transparent background is not supported for this model."}),
        "pictures are opaque",
        tasks=_PROMPTED,
        keeps=False,
    ),
    Field(
        "output_format",
        Choice(
            OutputFormat,
            refused={
                "gif": "Output format 'gif' is not supported by this model.",
                "svg": "Output format 'svg' is not supported by this model.",
            },
        ),
        "file format",
        tasks=_PROMPTED,
    ),
    Field("output_compression", Integer(0, 100), "quality of jpeg and webp; no effect on png", tasks=_PROMPTED),
    Field("response_format", Choice(ResponseFormat), "`url` (signed, one hour) or the bytes as base64"),
    Field("stream", Boolean(), "answer with server-sent events", tasks=_PROMPTED),
    Field("partial_images", Integer(0, 3), "with `stream`: previews sent before the picture", tasks=_PROMPTED),
    Field("moderation", Choice(Moderation), "accepted, no effect", tasks=_PROMPTED, keeps=False),
    Field("user", Text(0, 512), "stored with the run"),
    Field("safety_identifier", Text(0, 512), "stored with the run and echoed", tasks=_PROMPTED),
    Field("negative_prompt", Text(0, MAX_PROMPT_CHARACTERS), "what the picture must not show"),
    Field("seed", Integer(-1, MAX_SEED), "image i is made from seed + i; -1 or absent: drawn"),
    Field(
        "exact",
        Boolean(),
        "`true`: made alone, the same bytes each time; `false`: may share a pass with others; absent: true with a `seed`",
    ),
    Field("num_inference_steps", Integer(1, 300), "denoising steps", aliases=("steps", "step", "sample_steps")),
    Field("guidance_scale", Number(0, 100), "classifier-free guidance", aliases=("cfg_scale", "guidance")),
    Field("true_cfg_scale", Number(0, 100), "guidance of Qwen-Image; of FLUX.1 the one that a negative prompt needs"),
    Field("sampler", Text(1, 64), "denoising solver", aliases=("sampler_name", "sample_method")),
    Field("preset", Choice(Preset), "parts of some steps are left out for speed; the picture changes a little, but for `full`"),
    Field("loras", LoraList(), "adapters by name; `<lora:name:scale>` in the prompt does the same", aliases=("lora",)),
    Field("control", ControlList(), "pictures that guide what is drawn where, by ControlNets"),
    Field("upscale", UpscaleObject(), "makes the finished picture larger: `latent` or an upscaling model's name"),
    Field(
        "strength",
        Number(0, 1),
        "how far the picture may leave its input; 0 keeps it, 1 forgets it",
        aliases=("denoising_strength",),
        tasks=_WITH_INPUT,
    ),
    Field(
        "input_fidelity",
        Choice(InputFidelity),
        "`high` keeps closer to the input; `strength` wins over it",
        tasks=frozenset({Task.EDIT}),
    ),
    Field("mask_feather_px", Integer(0, 256), "width of the soft edge inside the mask", tasks=frozenset({Task.EDIT})),
    Field("embed_metadata", Boolean(), "`false`: the file does not say how it was made"),
    Field("cache", Boolean(), "`false`: made anew, even where the server may answer with what it made before"),
    Field("dry_run", Boolean(), "`true`: makes nothing; the answer is whether it fits, when it would be done, and its cost"),
    Field("webhook_url", Text(1, 2048), "with `Prefer: respond-async`: is called when the run has ended"),
    Field("complexity", Choice(Complexity), "accepted, no effect", tasks=_PROMPTED, keeps=False, told=True),
    Field("scheduler", Text(0, 64), "accepted, no effect", aliases=("schedule",), keeps=False, told=True),
    Field("flow_shift", Number(0, 100), "accepted, no effect", keeps=False, told=True),
    Field("clip_skip", Integer(0, 12), "accepted, no effect", keeps=False, told=True),
    Field("extra_params", JsonObject(), "accepted, no effect", keeps=False, told=True),
    Field("frame_count", Refused("{name!r} is for output_format 'gif', which this model does not make."), "refused"),
    Field("frame_duration_ms", Refused("{name!r} is for output_format 'gif', which this model does not make."), "refused"),
    Field("svg", Refused("{name!r} is for output_format 'svg', which this model does not make."), "refused"),
    Field("markup", Refused("Unknown parameter: {name!r}."), "refused", tasks=frozenset({Task.EDIT})),
)
