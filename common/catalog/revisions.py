"""The versions of the tables that this version of the code knows."""

from functools import cache
from pathlib import Path

from common.catalog.errors import SchemaOutdated

FOLDER = Path(__file__).parent / "migrations"
UPGRADE = "Run `aquatint db upgrade`."


@cache
def revisions() -> tuple[str, ...]:
    """All of them, from first to last. The files of migrations are named after theirs, in this order."""
    return tuple(sorted(path.name.partition("_")[0] for path in (FOLDER / "versions").glob("[0-9]*_*.py")))


def head() -> str:
    """The revision this version of the code needs."""
    return revisions()[-1]


def require_head(revision: str | None) -> None:
    """Raises: SchemaOutdated: tables of this revision are not those that this version of the code needs."""
    if revision == head():
        return
    if revision is not None and revision not in revisions():
        raise SchemaOutdated(f"The catalog was upgraded by a newer version of aquatint (to {revision}); install that.")
    raise SchemaOutdated(f"The catalog's tables are of an older version ({revision or 'none'}). {UPGRADE}")
