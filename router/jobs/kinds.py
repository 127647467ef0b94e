"""The kinds of long jobs, and what each may be asked for."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat

from router.jobs import backing_up, on_nodes, removing
from router.jobs.work import Work


class Params(BaseModel):
    """What a job may be asked for; nothing, of most."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def only_one(self, kind: str) -> str | None:
        """No two open jobs have the same."""
        return kind


class RetentionParams(Params):
    """Of `retention`."""

    older_than_days: StrictFloat = Field(ge=1, le=36500)


class BackupParams(Params):
    """Of `backup`."""

    keep: int | None = Field(default=None, ge=1)
    """Remove all but so many of the newest; none when absent."""


class NodeParams(Params):
    """Of what a node does."""

    node: str = Field(min_length=1, max_length=63)
    """Its name."""

    def only_one(self, kind: str) -> str | None:
        """See Params."""
        return f"{kind} {self.node}"


class PullParams(NodeParams):
    """Of `pull`."""

    source: str = Field(min_length=1, max_length=512)
    """ORGANISATION/NAME[@REVISION] of Hugging Face, civitai:VERSION, or an AIR."""

    def only_one(self, kind: str) -> str | None:
        """See Params."""
        return f"{kind} {self.node} {self.source}"


class HashParams(NodeParams):
    """Of `hashes`."""

    verify: StrictBool = False
    """Read files again whose hashes are known, and name those that have changed."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind."""

    does: str
    """In words, for the person who starts it."""
    unit: str
    """What its progress counts."""
    params: type[Params]
    do: Callable[[Work], Awaitable[None]]


KINDS: Mapping[str, Kind] = {
    "retention": Kind(
        does="Remove runs that ended a number of days ago, with pictures that no other run has.",
        unit="runs",
        params=RetentionParams,
        do=removing.remove_old_runs,
    ),
    "backup": Kind(
        does="Back up the catalog and its pictures, into the folder that the settings name.",
        unit="pictures",
        params=BackupParams,
        do=backing_up.back_up,
    ),
    "pull": Kind(
        does="Have a node bring a checkpoint from Hugging Face or CivitAI.",
        unit="bytes",
        params=PullParams,
        do=on_nodes.pull,
    ),
    "hashes": Kind(
        does="Have a node read the hashes of its checkpoints, or hold them against what they were.",
        unit="bytes",
        params=HashParams,
        do=on_nodes.read_hashes,
    ),
    "sweep": Kind(
        does="Go through the store of pictures and remove what no run refers to.",
        unit="folders",
        params=Params,
        do=removing.sweep_store,
    ),
}
