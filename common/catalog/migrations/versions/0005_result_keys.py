"""What a run's result can be found by when the same is asked for again."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("runs", sa.Column("result_key", sa.String(64), nullable=True))
    op.create_index(op.f("ix_runs_result_key"), "runs", ["result_key"])


def downgrade() -> None:
    op.drop_index(op.f("ix_runs_result_key"), table_name="runs")
    op.drop_column("runs", "result_key")
