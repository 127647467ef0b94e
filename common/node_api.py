"""What router and node say to each other beside OpenAI's own routes.

A run goes to a node as an ordinary `POST /v1/images/...` with the headers named here; everything else
about a node is under `/node/v1`. Both sides import these shapes, so neither can drift from the other.
"""

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from common.images_api import ImageRequest, Preset

RUN_ID_HEADER = "x-run-id"
"""The run this request carries out. A node without this header opens a run of its own."""
ATTEMPT_HEADER = "x-aquatint-attempt"
"""Number of this try, 1 for the first. Results of an attempt that is no longer the current one are refused (fenced)."""
KEY_ID_HEADER = "x-aquatint-key-id"
"""Id of the API key the router accepted the request under."""
PUBLIC_URL_HEADER = "x-aquatint-public-url"
"""Base of the URLs the client can reach, such as `https://images.example.com`: signed asset links start with it."""
REQUESTED_MODEL_HEADER = "x-aquatint-requested-model"
"""The name the client sent, before aliases were resolved."""
PLACES_HEADER = "x-aquatint-places"
"""The most runs the node may hold with this one: where more are there by now, it answers 409 before it reads the request."""
REQUEST_ID_HEADER = "x-request-id"

NOTHING_MORE: frozenset[str] = frozenset()


class NodePhase(StrEnum):
    """What a node says of itself."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    BROKEN = "broken"


class JobPhase(StrEnum):
    """Where a run is on a node."""

    QUEUED = "queued"
    LOADING = "loading"
    RUNNING = "running"


class _Shape(BaseModel):
    # Unknown fields are let through: nodes and routers of neighbouring versions must understand one another.
    model_config = ConfigDict(frozen=True, extra="ignore")


UNKNOWN = "unknown"


class DeviceStatus(_Shape):
    """The device behind a node."""

    kind: str
    """`cuda`, `mps`, `cpu`; `UNKNOWN` until its worker has started."""
    name: str
    memory_total_bytes: int = Field(ge=0)
    memory_free_bytes: int = Field(ge=0)


class MemoryLimit(_Shape):
    """What a node has found out about the pictures its memory suffices for, with one model and task."""

    too_large_px: int = Field(gt=0)
    """Area of the smallest picture that memory ran out for, after everything was tried; larger ones are not sent there."""
    fits_px: int = Field(gt=0)
    """Area of the largest that would fit: the largest that did, or half of `too_large_px` if that is more."""


class ModelStatus(_Shape):
    """One model a node can serve."""

    id: str
    family: str
    profile: str
    tasks: list[str]
    created: int
    resident: bool
    loading: bool = False
    licence: str | None = None
    capabilities: dict[str, Any] = Field(default_factory=dict)
    """Sizes and limits for clients: default_size, size_step_px, min_side_px, max_side_px, max_pixels, default_steps."""
    memory_bytes: int | None = Field(default=None, ge=0)
    """What its weights take of the device, from the file headers."""
    engine: str | None = None
    """What runs it here."""
    format: str | None = None
    """What the file is that this node chose: diffusers, safetensors or gguf."""
    chosen: str | None = None
    """Why this file and this engine."""
    offload: str | None = None
    """How much of its weights is kept off the device until it is needed: none, model (a component at a time) or group."""
    offload_chosen: str | None = None
    """Why so."""
    loras: list[str] = Field(default_factory=list)
    """Every name, hashes aside, that a LoRA made for it goes by there."""
    memory_limits: dict[str, MemoryLimit] = Field(default_factory=dict)
    """By task, where memory has run out before."""
    extras: list[str] = Field(default_factory=list)
    """What else a run of it may need and finds there, in the words of `extras_of`."""
    tuning: dict[str, str] = Field(default_factory=dict)
    """While it is loaded, how it computes: compile, attention, channels_last, each with the reason."""
    usual_strength: dict[str, float] = Field(default_factory=dict)
    """Share of the steps made where a request does not say, by task, with `masked` and `faithful` for edits that are so. A
    task without one makes all its steps, whatever the request says."""
    usual_preset: str = Preset.FULL.value
    """What requests are made with that name no preset."""
    quality_steps: dict[str, int] = Field(default_factory=dict)
    """Steps of each quality a request may name instead of them."""
    batch: int = Field(default=1, ge=1)
    """Runs without a seed that it would rather have at hand at once: it may make their pictures in one pass."""
    unavailable: str | None = None
    """Why it cannot be served just now, such as a load that failed; None when it can."""


def control_words(name: str | None, kind: str | None) -> str:
    """How a node says that it has a ControlNet of a name, or else one of a kind."""
    return f"the ControlNet {name!r}" if name is not None else f"a ControlNet for {kind}"


def upscaler_words(name: str) -> str:
    """How a node says that it has a way of enlarging pictures."""
    return f"the upscaler {name!r}"


def extras_of(request: ImageRequest) -> frozenset[str]:
    """What a request needs beside a model and LoRAs."""
    if not request.control and request.upscale is None:
        return NOTHING_MORE
    wanted = {control_words(each.name, each.kind) for each in request.control}
    return frozenset(wanted if request.upscale is None else wanted | {upscaler_words(request.upscale.method)})


def work_words(request: ImageRequest, usual_preset: str) -> str:
    """What kind of work a request is: runs of one kind and size take equally long for a megapixel-step.

    usual_preset: as `ModelStatus.usual_preset`.
    """
    words = str(request.task)
    if request.control:
        words += " controlled"
    if request.upscale is not None:
        words += " upscaled"
    preset = usual_preset if request.preset is None else str(request.preset)
    return words if preset == Preset.FULL else f"{words} {preset}"


def model_object(model: ModelStatus, *, name: str | None = None, alias_of: str | None = None) -> dict[str, Any]:
    """OpenAI's Model object, with what is known here beside it. name: the alias, where it is listed under one."""
    return {
        "id": name or model.id,
        "object": "model",
        "created": model.created,
        "owned_by": "aquatint",
        "shutdown_date": None,
        "alias_of": alias_of,
        "family": model.family,
        "profile": model.profile,
        "tasks": model.tasks,
        "capabilities": model.capabilities,
        "licence": model.licence,
        "resident": model.resident,
    }


class JobStatus(_Shape):
    """One run a node holds."""

    run_id: str
    model: str
    phase: JobPhase
    step: int = Field(default=0, ge=0)
    steps: int = Field(default=0, ge=0)
    work_units: float = Field(default=0, ge=0)
    """Megapixel-steps: width x height / 1e6 x steps x n."""
    work: str = ""
    """Its kind, in the words of `work_words`."""
    pixels: int = Field(default=0, ge=0)
    """Area of one picture."""
    pictures: int = Field(default=1, ge=1)
    loading_s: float = Field(default=0, ge=0)
    """How long it has waited for its model to be loaded."""


class RunTook(_Shape):
    """What one run took of a node's device by itself: its share where it was made with others. Seconds."""

    run_id: str
    model: str
    work: str
    pixels: int = Field(ge=0)
    pictures: int = Field(ge=1)
    work_units: float = Field(ge=0)
    steps_s: float = Field(ge=0)
    """For all that is in its work units."""
    rest_s: float = Field(ge=0)
    """For what each picture takes besides: encoding, decoding, writing."""


class LoadTook(_Shape):
    """One load on a node."""

    id: str
    model: str
    load_s: float = Field(ge=0)


class NodeStatus(_Shape):
    """All a router needs to know of a node: its answer to `GET /node/v1/status`."""

    name: str
    version: str
    phase: NodePhase
    device: DeviceStatus
    models: list[ModelStatus]
    jobs: list[JobStatus]
    expected: int = Field(default=0, ge=0)
    """Runs whose requests are being read, that have their places already."""
    max_concurrency: int = Field(default=1, ge=1)
    max_queued: int = Field(default=8, ge=0)
    seconds_per_unit: dict[str, float] = Field(default_factory=dict)
    """Measured seconds for one megapixel-step, by model."""
    load_s: dict[str, float] = Field(default_factory=dict)
    """Measured seconds to load, by model."""
    runs_took: list[RunTook] = Field(default_factory=list)
    """Of its latest runs that succeeded, the newest last."""
    loads_took: list[LoadTook] = Field(default_factory=list)
    """Of its latest loads, the newest last."""
    batch_s: dict[str, dict[int, float]] = Field(default_factory=dict)
    """Measured seconds a picture by the number of pictures in its pass, by device, model and shape in words."""
    resident: list[str] = Field(default_factory=list)
    """Models on the device, in the order in which they would leave it: the least recently used first."""
    pinned: list[str] = Field(default_factory=list)
    """Those of them that never leave for another."""
    budget_bytes: int | None = Field(default=None, ge=0)
    """Device memory that weights may take; None while the device is not known."""
    max_resident: int | None = Field(default=None, ge=1)
    """At most this many models on the device; None for no such bound."""


class Holding(_Shape):
    """What a node does just now, told with its refusal of a run."""

    phase: NodePhase
    jobs: list[JobStatus]
    expected: int = Field(default=0, ge=0)


class LoadOrder(BaseModel):
    """Body of `POST /node/v1/load` and `/node/v1/unload`."""

    model_config = ConfigDict(extra="forbid")

    model: str = Field(min_length=1)


class TokenOrder(BaseModel):
    """Body of `POST /node/v1/token`."""

    model_config = ConfigDict(extra="forbid")

    token: str = Field(pattern=r"^[!-~]{16,512}$", repr=False)


class CancelOrder(BaseModel):
    """Body of `POST /node/v1/cancel`."""

    model_config = ConfigDict(extra="forbid")

    run_id: str = Field(min_length=1)


class ChoreKind(StrEnum):
    """Long work on a node's files."""

    PULL = "pull"
    HASHES = "hashes"


class ChoreState(StrEnum):
    """Where a chore is. All but the first are final."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class ChoreOrder(_Shape):
    """Body of `POST /node/v1/chores`. Asked again under the same name, it changes nothing."""

    name: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    kind: ChoreKind
    source: str | None = None
    """Of a pull: as `aquatint models pull` takes it."""
    verify: bool = False
    """Of hashes: read those that are known too."""


class ChoreStatus(_Shape):
    """How far a chore is, and what came of it."""

    name: str
    state: ChoreState
    done: int = 0
    """Bytes."""
    total: int | None = None
    result: dict[str, Any] | None = None
    error: str | None = None
