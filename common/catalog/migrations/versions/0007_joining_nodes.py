"""Nodes that join by themselves wait for an operator's word; those that are there have it."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("nodes", sa.Column("approved_at", sa.DateTime(timezone=True), nullable=True))
    op.execute("UPDATE nodes SET approved_at = created_at")


def downgrade() -> None:
    op.drop_column("nodes", "approved_at")
