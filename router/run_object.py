"""A run as JSON, the same in answers and in webhooks."""

from datetime import datetime
from typing import Any

from common.catalog import RunRecord
from common.clock import clock
from common.images_api import AssetLinks, OutputFormat


def run_object(run: RunRecord, links: AssetLinks, *, public_url: str, nodes: bool) -> dict[str, Any]:
    """The run with links to its pictures. nodes: whether to name the nodes, which is the operator's business only."""
    now_s = clock.now_s()
    parts = [_part_object(part, nodes=nodes) for part in run.parts]
    return ({"parts": parts} if parts else {}) | {
        "id": run.id,
        "object": "run",
        "status": str(run.status),
        "task": run.task,
        "model": run.model,
        "requested_model": run.requested_model,
        "request": run.request,
        "parameters": run.effective,
        "timings": run.timings,
        "error": {"code": run.error_code, "message": run.error_message} if run.error_code else None,
        "created": unix(run.created_at),
        "started": unix(run.started_at),
        "finished": unix(run.finished_at),
        "images": [
            {
                "id": image.id,
                "index": image.index,
                "seed": image.seed,
                "format": image.format,
                "size": f"{image.width_px}x{image.height_px}",
                "url": links.sign(public_url, image.id, OutputFormat(image.format), now_s=now_s),
            }
            for image in run.images
        ],
        "attempts": _attempts(run, nodes=nodes),
    }


def _part_object(part: RunRecord, *, nodes: bool) -> dict[str, Any]:
    """One part of a run: who makes which pictures, and how it went."""
    return {
        "id": part.id,
        "status": str(part.status),
        "n": part.n,
        "seed": part.seed,
        "parameters": part.effective,
        "timings": part.timings,
        "attempts": _attempts(part, nodes=nodes),
    }


def _attempts(run: RunRecord, *, nodes: bool) -> list[dict[str, Any]]:
    return [
        {"no": a.no, "status": str(a.status), "error": a.error_code} | ({"node": a.node} if nodes else {}) for a in run.attempts
    ]


def unix(moment: datetime | None) -> int | None:
    """Whole seconds since 1970."""
    return None if moment is None else int(moment.timestamp())
