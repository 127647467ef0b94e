"""What routers have learned of the costs of work at nodes."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

ID = sa.String(40).with_variant(sa.String(40, collation="C"), "postgresql")
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "costs",
        sa.Column("node_id", ID, nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("work", sa.String(256), nullable=False),
        sa.Column("term", sa.String(256), nullable=False),
        sa.Column("size", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("log_s", sa.Float(), nullable=False),
        sa.Column("spread", sa.Float(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("measured_at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["node_id"], ["nodes.id"], name=op.f("fk_costs_node_id_nodes"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("node_id", "model", "work", "term", "size", name=op.f("pk_costs")),
    )


def downgrade() -> None:
    op.drop_table("costs")
