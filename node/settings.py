"""The node's settings: section `node` of the tree, read from `AQUATINT__NODE__*`."""

import platform
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from common.images_api import Preset
from common.settings import SECRET, CommonSettings, Section
from node.offload import OffloadSetting
from node.tuning import Attention, Tuning


class NodeSection(Section):
    """What one node needs to know."""

    host: str = Field(default="127.0.0.1", description="Address to listen on.")
    port: int = Field(default=8001, ge=0, le=65535, description="Port to listen on.")
    name: str = Field(
        default_factory=platform.node,
        min_length=1,
        max_length=64,
        description="What routers, logs and the catalog call this node; the host's name when absent.",
    )
    token: str | None = Field(
        default=None,
        min_length=16,
        repr=False,
        json_schema_extra=SECRET,
        description="Bearer token of routers and operators. Made once and kept in `home`/node-token when absent.",
    )
    join_url: str | None = Field(
        default=None,
        pattern=r"^https?://",
        description="A router to tell of this node at its start, instead of `aquatint nodes add`.",
    )
    join_key: str | None = Field(
        default=None,
        repr=False,
        json_schema_extra=SECRET,
        description="The key to do so: `aquatint keys create fleet --join`.",
    )
    advertised_url: str | None = Field(
        default=None,
        pattern=r"^https?://",
        description="Where routers reach this node. Its address on the way to `join_url`, and its port, when absent; behind "
        "NAT the outer address.",
    )
    models_dirs: list[Path] = Field(
        default_factory=list, description="Folders with checkpoints, as a JSON list. `home`/models when empty."
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        default="auto", description="auto (cuda, else mps, else cpu), cpu, cuda or mps."
    )
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        default="auto", description="Number format of weights; auto is what each model's profile says."
    )
    memory_budget_bytes: int | None = Field(
        default=None, ge=1, description="Device memory for weights; 80 % of the device's when absent."
    )
    offload: OffloadSetting = Field(
        default="auto",
        description="Keep weights in main memory until they are needed: auto where they do not fit a CUDA device, none, "
        "model (a component at a time on the device), group (a layer at a time; slowest).",
    )
    max_resident: int | None = Field(default=None, ge=1, description="At most this many models loaded at once.")
    max_queued: int = Field(default=8, ge=0, le=1000, description="Runs that may wait beside the one that runs.")
    idle_unload_s: float = Field(
        default=600, ge=0, description="A model nobody used for this long is unloaded; 0 never unloads."
    )
    drain_s: int = Field(default=30, ge=0, description="Time that runs held get to end after SIGTERM.")
    threads: int = Field(
        default=1,
        ge=1,
        le=256,
        description="CPU threads of the worker; as many more, where there are cores for both, decode a picture while the next "
        "is being made. On cores shared with others one is fastest.",
    )
    batching: Literal["auto", "off"] = Field(
        default="auto",
        description="auto: requests without a seed that wait and are alike share a pass where that is measured to pay; "
        "off: one picture after another.",
    )
    worker_leak_bytes: int = Field(
        default=4 * 1024**3,
        ge=0,
        description="Memory that the worker may hold without use; past it, it is replaced between runs. 0 for no bound.",
    )
    preload: list[str] = Field(
        default_factory=list, description="Models to load at the start and keep, as a JSON list of names."
    )
    preset: Preset = Field(
        default=Preset.FULL,
        description="Preset of requests that name none, for the models that have it; all but `full` change pictures a little.",
    )
    compile: Literal["off", "auto", "on"] = Field(
        default="off",
        description="Compile the blocks that repeat in a model, beside the runs: faster once ready, equal but for rounding. "
        "auto: on cuda.",
    )
    attention: Attention = Field(
        default="auto",
        description="Implementation of attention: native, cudnn, flash, flash3 or xformers; auto is torch's own.",
    )
    channels_last: Literal["off", "auto", "on"] = Field(
        default="auto", description="Memory format of UNets; auto: on cuda with half precision."
    )
    embed_parameters: bool = Field(default=True, description="Write prompt, seed and settings into each file, as A1111 does.")

    @model_validator(mode="after")
    def _can_join(self) -> Self:
        if (self.join_url is None) != (self.join_key is None):
            raise ValueError("join_url and join_key go together")
        return self


class NodeSettings(CommonSettings):
    """Everything a node process reads."""

    section: ClassVar[str | None] = "node"
    node: NodeSection = Field(default_factory=NodeSection)

    @property
    def models_dirs(self) -> list[Path]:
        """The folders looked into for checkpoints."""
        usual = self.home / "models"
        return self.node.models_dirs or ([usual] if usual.is_dir() else [])

    @property
    def pull_dir(self) -> Path:
        """The folder that checkpoints are brought to."""
        return next(iter(self.models_dirs), self.home / "models")

    @property
    def hashes_path(self) -> Path:
        """Where hashes of weight files are kept."""
        return self.home / "hashes.json"

    @property
    def batch_table_path(self) -> Path:
        """Where is kept what passes of several pictures cost."""
        return self.home / "node-batches.json"

    @property
    def tuning(self) -> Tuning:
        """How engines compute."""
        return Tuning(compile=self.node.compile, attention=self.node.attention, channels_last=self.node.channels_last)

    @property
    def compiled_path(self) -> Path:
        """Where compiled code is kept."""
        return self.home / "compiled"

    @property
    def token_path(self) -> Path:
        """Where a token made by the node is kept."""
        return self.home / "node-token"

    @property
    def memory_limits_path(self) -> Path:
        """Where it is kept which pictures memory did not suffice for."""
        return self.home / "memory-limits.json"
