"""Long jobs, and what happens to them."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0010"
down_revision = "0008"

ID = sa.String(40).with_variant(sa.String(40, collation="C"), "postgresql")
TIME = sa.DateTime(timezone=True)
JSON = sa.JSON().with_variant(JSONB(), "postgresql")
STATES = ("queued", "running", "succeeded", "failed", "cancelled")


def upgrade() -> None:
    state = sa.Enum(*STATES, name=op.f("ck_jobs_jobstate"), native_enum=False, create_constraint=True, length=16)
    op.create_table(
        "jobs",
        sa.Column("id", ID, nullable=False),
        sa.Column("kind", sa.String(256), nullable=False),
        sa.Column("state", state, nullable=False),
        sa.Column("params", JSON, nullable=False),
        sa.Column("only_one", sa.Text(), nullable=True),
        sa.Column("period", sa.String(256), nullable=True),
        sa.Column("key_id", sa.Text(), nullable=True),
        sa.Column("done", sa.BigInteger(), nullable=False),
        sa.Column("total", sa.BigInteger(), nullable=True),
        sa.Column("unit", sa.String(256), nullable=True),
        sa.Column("owner", sa.String(256), nullable=True),
        sa.Column("leased_until", TIME, nullable=False),
        sa.Column("executions", sa.Integer(), nullable=False),
        sa.Column("last_event", sa.Integer(), nullable=False),
        sa.Column("cancel_asked_at", TIME, nullable=True),
        sa.Column("summary", JSON, nullable=True),
        sa.Column("error_code", sa.Text(), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("started_at", TIME, nullable=True),
        sa.Column("finished_at", TIME, nullable=True),
        sa.CheckConstraint(
            "(finished_at IS NULL AND state IN ('queued', 'running')) OR "
            "(finished_at IS NOT NULL AND state IN ('succeeded', 'failed', 'cancelled') AND summary IS NOT NULL)",
            name=op.f("ck_jobs_ended_has_summary"),
        ),
        sa.CheckConstraint("state <> 'failed' OR error_code IS NOT NULL", name=op.f("ck_jobs_failed_has_error_code")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        sa.UniqueConstraint("period", name=op.f("uq_jobs_period")),
    )
    is_open = sa.text("finished_at IS NULL")
    op.create_index("uq_jobs_open_only_one", "jobs", ["only_one"], unique=True, sqlite_where=is_open, postgresql_where=is_open)
    op.create_index(op.f("ix_jobs_finished_at_leased_until"), "jobs", ["finished_at", "leased_until"])
    op.create_index(op.f("ix_jobs_kind_id"), "jobs", ["kind", "id"])
    op.create_table(
        "job_events",
        sa.Column("job_id", ID, nullable=False),
        sa.Column("no", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.String(256), nullable=False),
        sa.Column("data", JSON, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_events_job_id_jobs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "no", name=op.f("pk_job_events")),
    )


def downgrade() -> None:
    op.drop_table("job_events")
    op.drop_table("jobs")
