"""Runs that nobody waits for on a connection, their uploads and their webhooks."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

ID = sa.String(40).with_variant(sa.String(40, collation="C"), "postgresql")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "async_runs",
        sa.Column("run_id", ID, nullable=False),
        sa.Column("public_url", sa.Text(), nullable=False),
        sa.Column("owner", sa.String(256), nullable=True),
        sa.Column("leased_until", TIME, nullable=False),
        sa.Column("ended_at", TIME, nullable=True),
        sa.Column("webhook_url", sa.Text(), nullable=True),
        sa.Column("webhook_tries", sa.Integer(), nullable=False),
        sa.Column("webhook_due_at", TIME, nullable=True),
        sa.Column("webhook_error", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_async_runs_run_id_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", name=op.f("pk_async_runs")),
    )
    op.create_index(op.f("ix_async_runs_ended_at_leased_until"), "async_runs", ["ended_at", "leased_until"])
    op.create_index(op.f("ix_async_runs_webhook_due_at"), "async_runs", ["webhook_due_at"])
    op.create_table(
        "run_inputs",
        sa.Column("run_id", ID, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("purpose", sa.String(256), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["runs.id"], name=op.f("fk_run_inputs_run_id_runs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("run_id", "position", name=op.f("pk_run_inputs")),
    )
    op.create_index(op.f("ix_run_inputs_sha256"), "run_inputs", ["sha256"])


def downgrade() -> None:
    op.drop_table("run_inputs")
    op.drop_table("async_runs")
