"""A run about to be recorded -> its row."""

from datetime import datetime
from typing import Any

from common.catalog.records import NewRun, RunStatus


def row_of_run(run: NewRun, now: datetime) -> dict[str, Any]:
    """The row of a run that was accepted at `now` and waits."""
    return {
        "id": run.id,
        "status": RunStatus.QUEUED,
        "task": run.task,
        "model": run.model,
        "requested_model": run.requested_model,
        "prompt": run.prompt,
        "request": dict(run.request),
        "key_id": run.key_id,
        "request_id": run.request_id,
        "source": run.source,
        "seed": run.seed,
        "n": run.n,
        "width_px": run.width_px,
        "height_px": run.height_px,
        "current_attempt": 0,
        "created_at": now,
        "heartbeat_at": now,
        "result_key": run.result_key,
        "parent_id": run.parent_id,
    }
