"""What an operator can set of a router."""

from functools import cached_property
from pathlib import Path
from typing import ClassVar, Self

from pydantic import Field, model_validator

from common.image_origins import ImageOrigins
from common.settings import CommonSettings, Section


class RouterSection(Section):
    """`AQUATINT__ROUTER__*`."""

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8000, ge=1, le=65535, description="Port to listen on.")
    default_model: str | None = Field(
        default=None, description="Model of requests that name none. The first by name when absent."
    )
    max_queued: int = Field(default=256, ge=1, description="Runs that may wait for a node; one more is answered 429.")
    max_wait_s: float = Field(
        default=600, gt=0, description="A run that would wait for a node for longer, as predicted, is answered 429."
    )
    run_timeout_s: float = Field(
        default=600, gt=0, description="From acceptance to the answer's first byte, or a stream's end; then 504."
    )
    no_capacity_wait_s: float = Field(
        default=15, ge=0, description="How long a run waits for a node to come (back) that can take it; then 503."
    )
    max_attempts: int = Field(default=3, ge=1, le=10, description="Nodes one run is tried on.")
    node_depth: int = Field(
        default=1, ge=0, description="Runs sent to a node beyond what it runs at once, so that it never idles."
    )
    probe_interval_s: float = Field(
        default=2, gt=0, description="Time between looks at a node that does not say by itself how it is."
    )
    probe_timeout_s: float = Field(default=5, gt=0, description="A look that takes longer has failed.")
    connect_timeout_s: float = Field(default=3, gt=0, description="For connections to nodes.")
    sweep_interval_s: float = Field(default=30, gt=0, description="Time between sweeps of what a crash left open.")
    orphan_after_s: float = Field(default=90, gt=0, description="A run without a sign of life for this long is closed.")
    idempotency_hours: float = Field(
        default=24,
        gt=0,
        description="How long a request that comes again under its `Idempotency-Key` is answered as the first.",
    )
    split_runs: bool = Field(
        default=True,
        description="Have the pictures of one request made by several idle nodes where they are predicted to be done sooner.",
    )
    result_cache: bool = Field(
        default=False,
        description="Answer a request that names its seed with the pictures of the same request before, without a device.",
    )
    async_at_once: int = Field(
        default=16, ge=1, description="Async runs one router carries at once; others wait in the catalog."
    )
    max_async_open: int = Field(
        default=1000, ge=1, description="Async runs that may be open at once; one more is answered 429."
    )
    async_hours: float = Field(default=24, gt=0, description="How long an async run may wait for a node that can take it.")
    webhook_origins: list[str] = Field(
        default_factory=list,
        description="Origins that async runs may call when they end, as a JSON list: `https://a.example`, "
        "`https://*.example`. None: requests with a `webhook_url` are refused.",
    )
    webhook_networks: list[str] = Field(
        default_factory=list,
        description="Networks (CIDR) whose private addresses webhooks may be sent to all the same, as a JSON list.",
    )
    job_lease_s: float = Field(
        default=15,
        ge=1,
        description="A long job whose router gives no sign of life for so long is taken up by another.",
    )
    retention_days: float | None = Field(
        default=None,
        ge=1,
        description="Once a day runs that ended so long ago are removed, with their pictures; tagged ones stay. "
        "Never when absent.",
    )
    sweep_store_days: float | None = Field(
        default=None,
        ge=0.01,
        description="How often the whole store of pictures is gone through as a job, counted. When absent each router goes "
        "through it by itself, once an hour.",
    )
    backup_days: float | None = Field(
        default=None, ge=0.01, description="How often a backup is made, as a job; 7: weekly. Never when absent."
    )
    backup_keep: int | None = Field(default=None, ge=1, description="How many of these backups stay. All when absent.")
    backup_folder: Path | None = Field(
        default=None,
        description="Folder of the backups that jobs make; of several routers the same. `backups` in `home` when absent.",
    )
    drain_s: int = Field(default=30, ge=0, description="Time that runs in flight get to end after SIGTERM.")

    @cached_property
    def webhook_targets(self) -> ImageOrigins:
        """Where webhooks may go."""
        return ImageOrigins.parse(self.webhook_origins, self.webhook_networks)

    @model_validator(mode="after")
    def _targets_can_be_read(self) -> Self:
        # Reading them raises what is wrong with them.
        assert self.webhook_targets is not None
        return self


class RouterSettings(CommonSettings):
    """The tree as the router reads it."""

    section: ClassVar[str | None] = "router"

    router: RouterSection = Field(default_factory=RouterSection)

    @property
    def backup_path(self) -> Path:
        """The folder of the backups that jobs make."""
        return self.router.backup_folder or self.home / "backups"
