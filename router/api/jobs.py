"""/v1/jobs: long jobs of operators, which go on whatever becomes of the router that began them."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Header, Query, Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.responses import StreamingResponse

from common.catalog import JobEvent, JobRecord, JobState, NewJob
from common.catalog.job_records import OPEN_JOB
from common.errors import CatalogUnavailable, InvalidRequest
from common.images_api.events import HEADERS, KEEP_ALIVE, KEEP_ALIVE_EVERY_S
from common.logs import get_logger
from router.auth import AdminKey
from router.jobs.kinds import KINDS
from router.run_object import unix
from router.services import Services, ServicesDep

api = APIRouter(prefix="/v1/jobs")
log = get_logger(__name__)

LOOK_EVERY_S = 0.25


def _each_kind(schema: dict[str, Any]) -> None:
    """The document's words for a body: what each kind takes, rather than any object."""
    of_kinds = []
    for name, kind in KINDS.items():
        params = kind.params.model_json_schema()
        required = ["kind", "params"] if params.get("required") else ["kind"]
        properties = {"kind": {"const": name, "description": kind.does}, "params": params}
        of_kinds.append({"type": "object", "properties": properties, "required": required, "additionalProperties": False})
    title = schema["title"]
    schema.clear()
    schema |= {"title": title, "oneOf": of_kinds}


class NewJobBody(BaseModel):
    """Body of POST /v1/jobs."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=_each_kind)

    kind: str = Field(min_length=1, max_length=64)
    params: dict[str, Any] = Field(default_factory=dict)


@api.post("", status_code=201)
async def start_job(new: NewJobBody, key: AdminKey, services: ServicesDep) -> dict[str, Any]:
    """Put a job down to be done. 409 where one like it has not ended yet."""
    kind = KINDS.get(new.kind)
    if kind is None:
        raise InvalidRequest(f"There are no jobs of the kind {new.kind!r}; there are: {', '.join(KINDS)}.", param="kind")
    try:
        params = kind.params.model_validate(new.params)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(["params", *map(str, first["loc"])])
        raise InvalidRequest(f"Invalid '{where}': {first['msg']}.", param=where) from None
    told = NewJob(kind=new.kind, params=params.model_dump(exclude_none=True), only_one=params.only_one(new.kind), key_id=key.id)
    job = await services.catalog.jobs.add(told)
    services.jobs.look()
    return shown(job)


@api.get("")
async def list_jobs(
    key: AdminKey,
    services: ServicesDep,
    kind: str | None = None,
    state: JobState | None = None,
    before: str | None = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> dict[str, Any]:
    """Jobs, the newest first. before: the id of a job; those older than it."""
    found = await services.catalog.jobs.list(kind=kind, state=state, before=before, limit=limit)
    return {"object": "list", "data": [shown(job) for job in found]}


@api.get("/{job_id}")
async def retrieve_job(job_id: str, key: AdminKey, services: ServicesDep) -> dict[str, Any]:
    """One job: how far it is, and what came of it."""
    return shown(await services.catalog.jobs.get(job_id))


@api.delete("/{job_id}")
async def cancel_job(job_id: str, key: AdminKey, services: ServicesDep) -> dict[str, Any]:
    """Have a job end: at once while nobody has begun with it, else between two of its steps. Again changes nothing."""
    return shown(await services.catalog.jobs.cancel(job_id))


@api.get(
    "/{job_id}/events",
    response_class=StreamingResponse,
    responses={204: {"description": "The job has ended, and its last event is the one that `Last-Event-ID` names."}},
)
async def watch_job(
    job_id: str,
    key: AdminKey,
    services: ServicesDep,
    last_event_id: Annotated[int, Header(alias="Last-Event-ID", ge=0)] = 0,
) -> Response:
    """What happens to a job as server-sent events, from its first or after `Last-Event-ID`, until it has ended."""
    job, events = services.catalog.jobs, services.catalog.jobs.events
    ended = (await job.get(job_id)).state not in OPEN_JOB
    if ended and not await events(job_id, after=last_event_id, limit=1):
        # What tells a browser to ask no more.
        return Response(status_code=204)
    return StreamingResponse(_told(job_id, last_event_id, services), headers=HEADERS)


async def _told(job_id: str, after: int, services: Services) -> AsyncIterator[bytes]:
    silent_s = 0.0
    try:
        while True:
            for event in await services.catalog.jobs.events(job_id, after=after):
                yield _sse(event)
                after, silent_s = event.no, 0.0
                if event.kind == "state" and event.data["state"] not in OPEN_JOB:
                    return
            if await services.jobs.until_retired(LOOK_EVERY_S):
                return
            silent_s += LOOK_EVERY_S
            if silent_s >= KEEP_ALIVE_EVERY_S:
                yield KEEP_ALIVE
                silent_s = 0.0
    except CatalogUnavailable as error:
        # Whoever watches asks again, after the last event it got.
        log.info("watching_broke_off", job=job_id, why=error.message)


def _sse(event: JobEvent) -> bytes:
    data = orjson.dumps(event.data | {"at": unix(event.created_at)})
    return f"id: {event.no}\nevent: {event.kind}\ndata: ".encode() + data + b"\n\n"


def shown(job: JobRecord) -> dict[str, Any]:
    """A job as JSON."""
    return {
        "id": job.id,
        "object": "job",
        "kind": job.kind,
        "state": str(job.state),
        "params": job.params,
        "progress": {"done": job.done, "total": job.total, "unit": job.unit},
        "executions": job.executions,
        "owner": job.owner,
        "cancelling": job.state in OPEN_JOB and job.cancel_asked_at is not None,
        "summary": job.summary,
        "error": None if job.error_code is None else {"code": job.error_code, "message": job.error_message},
        "created": unix(job.created_at),
        "started": unix(job.started_at),
        "finished": unix(job.finished_at),
    }
