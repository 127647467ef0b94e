"""Runs that are a part of another run's pictures."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

ID = sa.String(40).with_variant(sa.String(40, collation="C"), "postgresql")


def upgrade() -> None:
    op.add_column("runs", sa.Column("parent_id", ID, nullable=True))
    op.create_index(op.f("ix_runs_parent_id"), "runs", ["parent_id"])


def downgrade() -> None:
    op.drop_index(op.f("ix_runs_parent_id"), table_name="runs")
    op.drop_column("runs", "parent_id")
