"""What goes into the catalog and comes out of it: plain frozen values, valid after the database session is gone."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple


class RunStatus(StrEnum):
    """Where a run is. The last three are final: nothing leads out of them."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class AttemptStatus(StrEnum):
    """Where one try at one node is. ABANDONED: fenced by a later attempt or by the run's end."""

    SENT = "sent"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    ABANDONED = "abandoned"


class NodeState(StrEnum):
    """What was last written down about a node."""

    PENDING = "pending"
    ONLINE = "online"
    ERROR = "error"
    OFFLINE = "offline"
    DRAINING = "draining"


OPEN_RUN = (RunStatus.QUEUED, RunStatus.RUNNING)
OPEN_ATTEMPT = (AttemptStatus.SENT, AttemptStatus.RUNNING)


class NewRun(NamedTuple):
    """An accepted request, about to be recorded."""

    id: str
    task: str
    """generation, edit or variation"""
    model: str
    """The public name, after aliases."""
    prompt: str
    request: Mapping[str, Any]
    """The request as accepted, without image bytes."""
    request_id: str
    source: str
    """router or node: which process accepted it."""
    requested_model: str | None = None
    """The name the client used."""
    key_id: str | None = None
    seed: int | None = None
    n: int = 1
    width_px: int | None = None
    height_px: int | None = None
    result_key: str | None = None
    """What its result can be found by when the same is asked for again; None when that is never."""
    parent_id: str | None = None
    """The run that it is a part of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One use of an idempotency key."""

    key_id: str
    """The API key it came with: another client's idempotency key of the same name is another one."""
    name: str
    """What the client sent, 1..256 characters."""
    fingerprint: str
    """64 hexadecimal digits, the same for the same request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """The answer that an idempotency key stands for."""

    run_id: str
    refusal: dict[str, Any] | None
    """The error that was answered, as the router wrote it down; None where the run succeeded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAsync:
    """What is recorded beside a run that nobody waits for on a connection."""

    owner: str
    """The router that carries it first."""
    lease_s: float
    public_url: str
    """Where links to its pictures start."""
    inputs: tuple[tuple[str, str], ...]
    """(what it is for: image, mask or control; sha256) of each upload, stored already."""
    webhook_url: str | None
    most: int
    """Async runs that may be open at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AsyncRecord:
    """What is known of an async run beside the run itself."""

    run_id: str
    public_url: str
    inputs: tuple[tuple[str, str], ...]
    """(what it is for, sha256) of each upload; none once the run has ended."""
    webhook_url: str | None
    webhook_tries: int
    webhook_error: str | None
    """Why the last try failed; None when it did not."""
    webhook_pending: bool
    """Whether there will be another try, or a first."""


@dataclass(frozen=True, slots=True)
class DueWebhook:
    """A webhook to be sent now."""

    run_id: str
    url: str
    public_url: str
    tries: int
    """This one included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewImage:
    """One picture of a run whose bytes are already durable in the asset store."""

    index: int
    sha256: str
    size_bytes: int
    format: str
    """png, jpeg or webp"""
    width_px: int
    height_px: int
    seed: int
    id: str | None = None
    """Made when absent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageRecord:
    """One picture of a run."""

    id: str
    run_id: str
    index: int
    sha256: str
    size_bytes: int
    format: str
    width_px: int
    height_px: int
    seed: int
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptRecord:
    """One try at one node."""

    no: int
    node: str
    status: AttemptStatus
    error_code: str | None
    error_message: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One run with everything known of it."""

    id: str
    status: RunStatus
    task: str
    model: str
    requested_model: str | None
    prompt: str
    request: dict[str, Any]
    key_id: str | None
    request_id: str
    source: str
    seed: int | None
    n: int
    width_px: int | None
    height_px: int | None
    effective: dict[str, Any] | None
    """What the engine really used; None until the run succeeded. So are `timings` and `answer`."""
    timings: dict[str, float] | None
    answer: dict[str, Any] | None
    error_code: str | None
    error_message: str | None
    current_attempt: int
    """0 before the first."""
    node: str | None
    """Name of the current attempt's node."""
    created_at: datetime
    started_at: datetime | None
    heartbeat_at: datetime
    finished_at: datetime | None
    attempts: tuple[AttemptRecord, ...]
    images: tuple[ImageRecord, ...]
    """By index; of a run made in parts, each names the part that made it."""
    tags: tuple[str, ...]
    parent_id: str | None
    parts: tuple["RunRecord", ...]
    """In the order of their pictures; none of most runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRecord:
    """A registered node."""

    id: str
    name: str
    url: str
    token: str | None = field(repr=False)
    """What the node wants as its key; None also when this process has no secret key to read it with."""
    state: str
    max_concurrency: int
    last_seen_at: datetime | None
    last_error: str | None
    created_at: datetime
    approved_at: datetime | None
    """None for a node that joined and waits for an operator's word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an API key may do; None: as much as it likes."""

    requests_per_minute: int | None = None
    images_per_day: int | None = None
    gpu_seconds_per_day: float | None = None
    max_in_flight: int | None = None
    priority: str | None = None
    """The highest of its requests: high, normal or low; normal where there is none."""
    deadline_s: float | None = None
    """Of requests that do not name one: seconds after which the answer is not wanted any more."""

    @property
    def counted(self) -> bool:
        """Whether there is one that requests are counted for."""
        return (
            self.requests_per_minute is not None
            or self.images_per_day is not None
            or self.gpu_seconds_per_day is not None
            or self.max_in_flight is not None
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Amounts:
    """Of what limits are about. Days and minutes are UTC's."""

    requests: int = 0
    """Within one minute."""
    images: int = 0
    """Within one day; so are the GPU-seconds."""
    gpu_s: float = 0.0
    in_flight: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """What a router got of a key's limits."""

    granted: Amounts
    """What it may give away, what it has given away already included."""
    room: Amounts
    """What it could have got."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRecord:
    """What one API key used on one day."""

    key_id: str
    day: str
    runs: int
    images: int
    gpu_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """An API key, without its secret."""

    id: str
    name: str
    prefix: str
    """The first characters of the secret: enough to tell one's keys apart."""
    scopes: frozenset[str]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None
    limits: Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """One weight file of a model."""

    path: str
    format: str
    """safetensors, gguf or diffusers (a folder)"""
    size_bytes: int
    sha256: str | None = None
    autov2: str | None = None
    """The first ten digits of sha256, which model sites show."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRecord:
    """A model some node has or had."""

    id: str
    name: str
    family: str
    profile: str | None
    licence: str | None
    capabilities: dict[str, Any]
    files: tuple[ModelFile, ...]
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepReport:
    """What one sweep did."""

    runs_closed: tuple[str, ...] = ()
    attempts_closed: int = 0
    assets_removed: int = 0
    removed_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class CostRecord:
    """A running estimate of what one kind of work costs at one node."""

    node_id: str
    model: str
    work: str
    """Its kind; empty for loads."""
    term: str
    """What of it: step, picture or load."""
    size: int
    """Of the pictures, in buckets of the router's; 0 for loads."""
    log_s: float
    """Natural logarithm of the seconds."""
    spread: float
    """Of that logarithm."""
    count: int
    """Measurements in it."""
    measured_at: datetime
    """When the last of them was taken in."""
