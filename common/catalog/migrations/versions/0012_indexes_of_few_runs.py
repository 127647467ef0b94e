"""Of what few runs have, an index of those few: it costs the others nothing when they are written."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"

COLUMNS = ("result_key", "parent_id")


def upgrade() -> None:
    for column in COLUMNS:
        op.drop_index(op.f(f"ix_runs_{column}"), table_name="runs")
        given = sa.text(f"{column} IS NOT NULL")
        op.create_index(op.f(f"ix_runs_{column}"), "runs", [column], sqlite_where=given, postgresql_where=given)


def downgrade() -> None:
    for column in COLUMNS:
        op.drop_index(op.f(f"ix_runs_{column}"), table_name="runs")
        op.create_index(op.f(f"ix_runs_{column}"), "runs", [column])
