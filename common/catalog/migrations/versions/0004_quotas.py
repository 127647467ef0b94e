"""Limits of API keys, what was used of them, and what routers hold of them."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0004"
down_revision = "0003"

ID = sa.String(40).with_variant(sa.String(40, collation="C"), "postgresql")
JSON = sa.JSON().with_variant(JSONB(), "postgresql")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("limits", JSON, nullable=True))
    op.create_table(
        "key_usage",
        sa.Column("key_id", ID, nullable=False),
        sa.Column("day", sa.String(256), nullable=False),
        sa.Column("runs", sa.Integer(), nullable=False),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("gpu_s", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("key_id", "day", name=op.f("pk_key_usage")),
    )
    op.create_table(
        "quota_leases",
        sa.Column("key_id", ID, nullable=False),
        sa.Column("holder", sa.String(256), nullable=False),
        sa.Column("expires_at", TIME, nullable=False),
        sa.Column("in_flight", sa.Integer(), nullable=False),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("gpu_s", sa.Float(), nullable=False),
        sa.Column("minute", sa.Integer(), nullable=False),
        sa.Column("requests", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("key_id", "holder", name=op.f("pk_quota_leases")),
    )


def downgrade() -> None:
    op.drop_table("quota_leases")
    op.drop_table("key_usage")
    op.drop_column("api_keys", "limits")
