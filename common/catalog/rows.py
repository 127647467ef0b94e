"""Rows of runs -> records, and what must be loaded for it (`lazy="raise"` forbids hidden queries)."""

from dataclasses import replace

from sqlalchemy import Select, select
from sqlalchemy.orm import joinedload, selectinload

from common.catalog.records import AttemptRecord, ImageRecord, RunRecord, RunStatus
from common.catalog.tables import Attempt, Image, Run


def select_runs() -> Select[Run]:
    """Runs with all that a RunRecord holds."""
    of_each = (selectinload(Run.attempts), selectinload(Run.images).joinedload(Image.asset), selectinload(Run.tags))
    return select(Run).options(*of_each, selectinload(Run.parts).options(*of_each))


def select_images() -> Select[Image]:
    """Images with all that an ImageRecord holds."""
    return select(Image).options(joinedload(Image.asset))


def run_record(run: Run) -> RunRecord:
    """A row of `select_runs` as a record. What a run made in parts is, it is by its parts."""
    whole, parts = _run_record(run), tuple(_run_record(part) for part in run.parts)
    if not parts or run.current_attempt:
        return replace(whole, parts=parts)
    if run.status is RunStatus.QUEUED and any(part.status is not RunStatus.QUEUED for part in parts):
        began = [part.started_at for part in parts if part.started_at is not None]
        whole = replace(whole, status=RunStatus.RUNNING, started_at=min(began, default=None))
    if run.status is not RunStatus.SUCCEEDED:
        return replace(whole, parts=parts)
    images = (image for part in parts for image in part.images)
    return replace(whole, parts=parts, images=tuple(replace(image, index=index) for index, image in enumerate(images)))


def _run_record(run: Run) -> RunRecord:
    """Without its parts."""
    attempts = tuple(_attempt_record(attempt) for attempt in run.attempts)
    return RunRecord(
        id=run.id,
        status=run.status,
        task=run.task,
        model=run.model,
        requested_model=run.requested_model,
        prompt=run.prompt,
        request=run.request,
        key_id=run.key_id,
        request_id=run.request_id,
        source=run.source,
        seed=run.seed,
        n=run.n,
        width_px=run.width_px,
        height_px=run.height_px,
        effective=run.effective,
        timings=run.timings,
        answer=run.answer,
        error_code=run.error_code,
        error_message=run.error_message,
        current_attempt=run.current_attempt,
        node=next((attempt.node for attempt in attempts if attempt.no == run.current_attempt), None),
        created_at=run.created_at,
        started_at=run.started_at,
        heartbeat_at=run.heartbeat_at,
        finished_at=run.finished_at,
        attempts=attempts,
        images=tuple(image_record(image) for image in run.images),
        tags=tuple(tag.name for tag in run.tags),
        parent_id=run.parent_id,
        parts=(),
    )


def _attempt_record(attempt: Attempt) -> AttemptRecord:
    return AttemptRecord(
        no=attempt.no,
        node=attempt.node,
        status=attempt.status,
        error_code=attempt.error_code,
        error_message=attempt.error_message,
        created_at=attempt.created_at,
        started_at=attempt.started_at,
        finished_at=attempt.finished_at,
    )


def image_record(image: Image) -> ImageRecord:
    """A row of `select_images` as a record."""
    return ImageRecord(
        id=image.id,
        run_id=image.run_id,
        index=image.index,
        sha256=image.sha256,
        size_bytes=image.asset.size_bytes,
        format=image.asset.format,
        width_px=image.asset.width_px,
        height_px=image.asset.height_px,
        seed=image.seed,
        created_at=image.created_at,
    )
