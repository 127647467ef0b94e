"""The tables. Only this package sees them; everybody else gets records.

Names of models, nodes and keys in runs are plain text, not foreign keys: a run outlives the node that made it, and a
node that keeps a catalog of its own is told ids that stand in another.
"""

from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import CheckConstraint, Enum, Float, ForeignKey, Index, Integer, MetaData, UniqueConstraint, text
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column, relationship

from common.catalog.columns import Bytes, Count, FreeText, Id, Json, Name, Seed, Sha256, UtcDateTime
from common.catalog.job_records import JobState
from common.catalog.records import AttemptStatus, NodeState, RunStatus


def _one_of(values: type[StrEnum]) -> Enum:
    """Text and a CHECK: a native enum type cannot be changed inside a transaction on every database."""
    return Enum(
        values,
        native_enum=False,
        create_constraint=True,
        name=values.__name__.lower(),
        length=16,
        values_callable=lambda members: [member.value for member in members],
    )


class Table(MappedAsDataclass, DeclarativeBase, kw_only=True):
    """Base of all tables."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Asset(Table):
    """Stored bytes of one image. A row here is what keeps the sweeper from removing them."""

    __tablename__ = "assets"

    sha256: Mapped[str] = mapped_column(Sha256, primary_key=True)
    size_bytes: Mapped[int] = mapped_column(Bytes)
    format: Mapped[str] = mapped_column(Name)
    width_px: Mapped[int] = mapped_column(Count)
    height_px: Mapped[int] = mapped_column(Count)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class Attempt(Table):
    """One try at one node."""

    __tablename__ = "attempts"
    __table_args__ = ({"sqlite_with_rowid": False},)

    run_id: Mapped[str] = mapped_column(Id, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    no: Mapped[int] = mapped_column(Count, primary_key=True, autoincrement=False)
    node: Mapped[str] = mapped_column(Name)
    status: Mapped[AttemptStatus] = mapped_column(_one_of(AttemptStatus))
    error_code: Mapped[str | None] = mapped_column(FreeText)
    error_message: Mapped[str | None] = mapped_column(FreeText)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Image(Table):
    """One picture of a run. The same bytes may be the picture of several."""

    __tablename__ = "images"
    __table_args__ = (UniqueConstraint("run_id", "index"), Index(None, "sha256"))

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    run_id: Mapped[str] = mapped_column(Id, ForeignKey("runs.id", ondelete="CASCADE"))
    index: Mapped[int] = mapped_column(Count)
    sha256: Mapped[str] = mapped_column(Sha256, ForeignKey("assets.sha256"))
    seed: Mapped[int] = mapped_column(Seed)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    asset: Mapped[Asset] = relationship(lazy="raise", init=False, viewonly=True)


class Tag(Table):
    """A word people put on runs."""

    __tablename__ = "tags"
    __table_args__ = (UniqueConstraint("name"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True, init=False)
    name: Mapped[str] = mapped_column(Name)


class RunTag(Table):
    """A tag on a run."""

    __tablename__ = "run_tags"
    __table_args__ = (Index(None, "tag_id"),)

    run_id: Mapped[str] = mapped_column(Id, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    tag_id: Mapped[int] = mapped_column(Integer, ForeignKey("tags.id", ondelete="CASCADE"), primary_key=True)


def _index_where_given(column: str) -> Index:
    """Of the few rows that have a value there: it costs the others nothing."""
    given = text(f"{column} IS NOT NULL")
    return Index(None, column, sqlite_where=given, postgresql_where=given)


class Run(Table):
    """One accepted request's execution."""

    __tablename__ = "runs"
    __table_args__ = (
        # Ids sort by time of creation, and lists are paged by id: these serve "the newest of this kind".
        Index(None, "status", "id"),
        Index(None, "model", "id"),
        _index_where_given("result_key"),
        _index_where_given("parent_id"),
        CheckConstraint("status <> 'failed' OR error_code IS NOT NULL", name="failed_has_error_code"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    status: Mapped[RunStatus] = mapped_column(_one_of(RunStatus))
    task: Mapped[str] = mapped_column(Name)
    model: Mapped[str] = mapped_column(FreeText)
    requested_model: Mapped[str | None] = mapped_column(FreeText)
    prompt: Mapped[str] = mapped_column(FreeText)
    request: Mapped[dict[str, Any]] = mapped_column(Json)
    key_id: Mapped[str | None] = mapped_column(FreeText)
    request_id: Mapped[str] = mapped_column(FreeText)
    source: Mapped[str] = mapped_column(Name)
    seed: Mapped[int | None] = mapped_column(Seed)
    n: Mapped[int] = mapped_column(Count)
    width_px: Mapped[int | None] = mapped_column(Count)
    height_px: Mapped[int | None] = mapped_column(Count)
    effective: Mapped[dict[str, Any] | None] = mapped_column(Json)
    timings: Mapped[dict[str, Any] | None] = mapped_column(Json)
    answer: Mapped[dict[str, Any] | None] = mapped_column(Json)
    error_code: Mapped[str | None] = mapped_column(FreeText)
    error_message: Mapped[str | None] = mapped_column(FreeText)
    current_attempt: Mapped[int] = mapped_column(Count)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    heartbeat_at: Mapped[datetime] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    result_key: Mapped[str | None] = mapped_column(Sha256)
    parent_id: Mapped[str | None] = mapped_column(Id)
    """The run that this one is a part of. Not a foreign key: SQLite cannot add one to a table that is there."""
    attempts: Mapped[list[Attempt]] = relationship(lazy="raise", init=False, viewonly=True, order_by=Attempt.no)
    images: Mapped[list[Image]] = relationship(lazy="raise", init=False, viewonly=True, order_by=Image.index)
    tags: Mapped[list[Tag]] = relationship(lazy="raise", init=False, viewonly=True, secondary="run_tags", order_by=Tag.name)
    parts: Mapped[list["Run"]] = relationship(
        lazy="raise", init=False, viewonly=True, order_by="Run.id", primaryjoin="Run.id == remote(foreign(Run.parent_id))"
    )


class IdempotencyKey(Table):
    """What a client called a request, and the run that answers it. Not a foreign key: a run that is gone frees the name."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index(None, "created_at"),)

    key_id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(Name, primary_key=True)
    fingerprint: Mapped[str] = mapped_column(Sha256)
    run_id: Mapped[str] = mapped_column(Id)
    refusal: Mapped[dict[str, Any] | None] = mapped_column(Json)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class AsyncRun(Table):
    """A run that nobody waits for on a connection: any router may carry it, one at a time."""

    __tablename__ = "async_runs"
    __table_args__ = (Index(None, "ended_at", "leased_until"), Index(None, "webhook_due_at"))

    run_id: Mapped[str] = mapped_column(Id, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    public_url: Mapped[str] = mapped_column(FreeText)
    owner: Mapped[str | None] = mapped_column(Name)
    leased_until: Mapped[datetime] = mapped_column(UtcDateTime)
    ended_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    webhook_url: Mapped[str | None] = mapped_column(FreeText)
    webhook_tries: Mapped[int] = mapped_column(Count)
    webhook_due_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    webhook_error: Mapped[str | None] = mapped_column(FreeText)


class RunInput(Table):
    """An uploaded picture of a run that may have to be sent again; kept until that run ends."""

    __tablename__ = "run_inputs"
    __table_args__ = (Index(None, "sha256"),)

    run_id: Mapped[str] = mapped_column(Id, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(Count, primary_key=True, autoincrement=False)
    purpose: Mapped[str] = mapped_column(Name)
    sha256: Mapped[str] = mapped_column(Sha256)


class Decision(Table):
    """Why a router sent an attempt to its node, and what came of the prediction."""

    __tablename__ = "decisions"

    run_id: Mapped[str] = mapped_column(Id, ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    attempt: Mapped[int] = mapped_column(Count, primary_key=True, autoincrement=False)
    told: Mapped[dict[str, Any]] = mapped_column(Json)


class Model(Table):
    """A model by its public name."""

    __tablename__ = "models"
    __table_args__ = (UniqueConstraint("name"), Index(None, "family"))

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(Name)
    family: Mapped[str] = mapped_column(Name)
    profile: Mapped[str | None] = mapped_column(Name)
    licence: Mapped[str | None] = mapped_column(FreeText)
    capabilities: Mapped[dict[str, Any]] = mapped_column(Json)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    files: Mapped[list["ModelFileRow"]] = relationship(lazy="raise", init=False, viewonly=True, order_by="ModelFileRow.path")


class ModelFileRow(Table):
    """One weight file of a model."""

    __tablename__ = "model_files"
    __table_args__ = (Index(None, "sha256"), Index(None, "autov2"))

    model_id: Mapped[str] = mapped_column(Id, ForeignKey("models.id", ondelete="CASCADE"), primary_key=True)
    path: Mapped[str] = mapped_column(FreeText, primary_key=True)
    format: Mapped[str] = mapped_column(Name)
    size_bytes: Mapped[int] = mapped_column(Bytes)
    sha256: Mapped[str | None] = mapped_column(Sha256)
    autov2: Mapped[str | None] = mapped_column(Name)


class ModelAlias(Table):
    """Another name for a model. The target is a name: nodes may have models the catalog was never told of."""

    __tablename__ = "model_aliases"
    __table_args__ = (Index(None, "model"),)

    alias: Mapped[str] = mapped_column(FreeText, primary_key=True)
    model: Mapped[str] = mapped_column(FreeText)


class Node(Table):
    """A node that an operator registered, or that joined by itself."""

    __tablename__ = "nodes"
    __table_args__ = (
        UniqueConstraint("name"),
        UniqueConstraint("url"),
        CheckConstraint("max_concurrency >= 1", name="max_concurrency_positive"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(Name)
    url: Mapped[str] = mapped_column(FreeText)
    token_encrypted: Mapped[str | None] = mapped_column(FreeText)
    state: Mapped[NodeState] = mapped_column(_one_of(NodeState))
    max_concurrency: Mapped[int] = mapped_column(Count)
    last_seen_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_error: Mapped[str | None] = mapped_column(FreeText)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    approved_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


_ACTIVE = text("revoked_at IS NULL")


class ApiKey(Table):
    """A key, by the SHA-256 of its secret. A name can be used again once its key is revoked."""

    __tablename__ = "api_keys"
    __table_args__ = (
        UniqueConstraint("secret_sha256"),
        Index("uq_api_keys_active_name", "name", unique=True, sqlite_where=_ACTIVE, postgresql_where=_ACTIVE),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    name: Mapped[str] = mapped_column(Name)
    prefix: Mapped[str] = mapped_column(Name)
    secret_sha256: Mapped[str] = mapped_column(Sha256)
    scopes: Mapped[list[str]] = mapped_column(Json)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    revoked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    limits: Mapped[dict[str, Any] | None] = mapped_column(Json)


class KeyUsage(Table):
    """What the runs of one API key that succeeded on one day made and took: the sum of their bills."""

    __tablename__ = "key_usage"

    key_id: Mapped[str] = mapped_column(Id, primary_key=True)
    day: Mapped[str] = mapped_column(Name, primary_key=True)
    """In UTC, such as 2026-11-25."""
    runs: Mapped[int] = mapped_column(Count)
    images: Mapped[int] = mapped_column(Count)
    gpu_s: Mapped[float] = mapped_column(Float)


class QuotaLease(Table):
    """What one router may give away of a key's limits, or has given, without asking again."""

    __tablename__ = "quota_leases"

    key_id: Mapped[str] = mapped_column(Id, primary_key=True)
    holder: Mapped[str] = mapped_column(Name, primary_key=True)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    in_flight: Mapped[int] = mapped_column(Count)
    images: Mapped[int] = mapped_column(Count)
    gpu_s: Mapped[float] = mapped_column(Float)
    minute: Mapped[int] = mapped_column(Count)
    """Whole minutes since 1970 that `requests` are of."""
    requests: Mapped[int] = mapped_column(Count)


class Cost(Table):
    """What routers have learned of one kind of work at one node: a running estimate, and how sure it is."""

    __tablename__ = "costs"

    node_id: Mapped[str] = mapped_column(Id, ForeignKey("nodes.id", ondelete="CASCADE"), primary_key=True)
    model: Mapped[str] = mapped_column(FreeText, primary_key=True)
    work: Mapped[str] = mapped_column(Name, primary_key=True)
    term: Mapped[str] = mapped_column(Name, primary_key=True)
    size: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    log_s: Mapped[float] = mapped_column(Float)
    spread: Mapped[float] = mapped_column(Float)
    count: Mapped[int] = mapped_column(Count)
    measured_at: Mapped[datetime] = mapped_column(UtcDateTime)


_OPEN = text("finished_at IS NULL")


class Job(Table):
    """Work that takes longer than anybody waits, carried on by another router when its own dies."""

    __tablename__ = "jobs"
    __table_args__ = (
        UniqueConstraint("period"),
        Index("uq_jobs_open_only_one", "only_one", unique=True, sqlite_where=_OPEN, postgresql_where=_OPEN),
        Index(None, "finished_at", "leased_until"),
        Index(None, "kind", "id"),
        CheckConstraint(
            "(finished_at IS NULL AND state IN ('queued', 'running')) OR "
            "(finished_at IS NOT NULL AND state IN ('succeeded', 'failed', 'cancelled') AND summary IS NOT NULL)",
            name="ended_has_summary",
        ),
        CheckConstraint("state <> 'failed' OR error_code IS NOT NULL", name="failed_has_error_code"),
    )

    id: Mapped[str] = mapped_column(Id, primary_key=True)
    kind: Mapped[str] = mapped_column(Name)
    state: Mapped[JobState] = mapped_column(_one_of(JobState))
    params: Mapped[dict[str, Any]] = mapped_column(Json)
    only_one: Mapped[str | None] = mapped_column(FreeText)
    period: Mapped[str | None] = mapped_column(Name)
    key_id: Mapped[str | None] = mapped_column(FreeText)
    done: Mapped[int] = mapped_column(Bytes)
    total: Mapped[int | None] = mapped_column(Bytes)
    unit: Mapped[str | None] = mapped_column(Name)
    owner: Mapped[str | None] = mapped_column(Name)
    leased_until: Mapped[datetime] = mapped_column(UtcDateTime)
    executions: Mapped[int] = mapped_column(Count)
    last_event: Mapped[int] = mapped_column(Count)
    cancel_asked_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    summary: Mapped[dict[str, Any] | None] = mapped_column(Json)
    error_code: Mapped[str | None] = mapped_column(FreeText)
    error_message: Mapped[str | None] = mapped_column(FreeText)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class JobEventRow(Table):
    """Something that happened to a job, for those who watch."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(Id, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    no: Mapped[int] = mapped_column(Count, primary_key=True, autoincrement=False)
    kind: Mapped[str] = mapped_column(Name)
    data: Mapped[dict[str, Any]] = mapped_column(Json)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class Secret(Table):
    """A value all processes of one installation share, such as the key that signs links."""

    __tablename__ = "secrets"

    name: Mapped[str] = mapped_column(Name, primary_key=True)
    value: Mapped[str] = mapped_column(FreeText)
