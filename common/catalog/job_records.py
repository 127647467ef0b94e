"""Long jobs as they go into the catalog and come out of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any


class JobState(StrEnum):
    """Where a job is. The last three are final, and a job in one of them has a summary: the tables see to it."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


OPEN_JOB = (JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewJob:
    """A job that somebody wants done."""

    kind: str
    params: Mapping[str, Any]
    only_one: str | None = None
    """No two open jobs have the same; None: as many as one likes."""
    period: str | None = None
    """The turn of a schedule that this is; no two jobs ever have the same. None: somebody asked for it."""
    key_id: str | None = None
    """Who asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """One job with everything known of it."""

    id: str
    kind: str
    state: JobState
    params: dict[str, Any]
    key_id: str | None
    done: int
    total: int | None
    """None while nobody knows."""
    unit: str | None
    """What `done` and `total` count."""
    owner: str | None
    """The router that works on it, or did last."""
    executions: int
    """How often a router began with it: once, and once more after each that left it."""
    cancel_asked_at: datetime | None
    summary: dict[str, Any] | None
    """What came of it; None while it is open."""
    error_code: str | None
    error_message: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEvent:
    """Something that happened to a job."""

    no: int
    """1 for the first of its job; the next has the next number."""
    kind: str
    """state or progress"""
    data: dict[str, Any]
    created_at: datetime
