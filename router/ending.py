"""The end of a run that got no answer, as the catalog has it."""

from common.catalog import AttemptFenced, Catalog
from common.errors import AquatintError, CatalogUnavailable, NotFound, RunCancelled
from common.logs import get_logger

log = get_logger(__name__)


async def close(catalog: Catalog, run_id: str, error: AquatintError) -> None:
    """Write down how a run that got no answer ended. The sweeper does it later if the catalog cannot be reached now."""
    try:
        if isinstance(error, RunCancelled):
            await catalog.runs.cancel(run_id, reason=error.message)
        else:
            await catalog.runs.fail(run_id, code=error.code or "failed", message=error.message)
    except (CatalogUnavailable, AttemptFenced, NotFound) as unavailable:
        log.warning("run_not_closed", run_id=run_id, why=unavailable.message)
