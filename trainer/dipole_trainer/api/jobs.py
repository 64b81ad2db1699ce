"""/v1/fine_tuning/jobs: create, list, retrieve, pause, resume, cancel, events, the event stream, the ledger."""

from __future__ import annotations

import re
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from kombu.exceptions import OperationalError
from pydantic import Field
from redis.exceptions import RedisError

from dipole.broker.connection import describe_redis_error
from dipole.errors import InvalidInput
from dipole_trainer.api import schemas
from dipole_trainer.api.auth import require_scope
from dipole_trainer.api.dependencies import JobId, ListQuery, PageQuery, State
from dipole_trainer.api.event_stream import EventStreamResponse
from dipole_trainer.api.job_requests import JobRequest, queue_job
from dipole_trainer.api.json_route import JSONRoute
from dipole_trainer.ranking.weight_changes import RewardWeights

log = structlog.get_logger()
router = APIRouter(
    prefix="/v1/fine_tuning/jobs", tags=["jobs"], dependencies=[require_scope("train")], route_class=JSONRoute
)
IdempotencyKey = Annotated[
    str | None,
    Header(min_length=1, max_length=255, description="A repeat with the same key and body returns the first job."),
]
AnyJob = schemas.FineTuningJob | schemas.UnreadableObject
STREAM_EXAMPLE = 'event: step\nid: 42\ndata: {"id": "ftevent-42", "kind": "step", "data": {"step": 7, "loss": 0.1}}\n\n'
STREAM_DESCRIPTION = (
    "Server-sent events: `id:` is the cursor, `event:` the kind, `data:` the event object. Send the last `id` seen as "
    "`Last-Event-ID` to go on after it. A comment comes every 15 seconds of silence. The stream ends when the job has "
    "ended and every event was sent; 204 says that there is nothing more to come."
)


@router.post("", summary="Create a job")
async def create_job(
    request: Request, state: State, body: JobRequest, idempotency_key: IdempotencyKey = None
) -> AnyJob:
    """The request is checked whole and its rewards are asked first, so that a job which cannot work is refused and
    not failed later.
    """
    job = await queue_job(state, body, idempotency_key)
    log.info("job_created", job_id=job.id)
    request.scope["dipole.job_id"] = job.id  # for the audit log
    return schemas.show_job(job)


@router.get("", summary="List jobs, newest first")
def list_jobs(state: State, page: Annotated[PageQuery, Query()]) -> schemas.Paged[AnyJob]:
    """The list is a page of all jobs, in any state."""
    rows, more = state.jobs.list_jobs(after=page.after, limit=page.limit)
    return schemas.page_of(schemas.show_rows(rows, schemas.to_job_object), more)


@router.get("/{job_id}", summary="Retrieve a job")
def retrieve_job(state: State, job_id: JobId) -> AnyJob:
    """The answer is the job as it is now."""
    return schemas.show_job(state.jobs.get_job(job_id))


@router.post("/{job_id}/pause", summary="Pause: stop at the next step with a checkpoint")
def pause_job(state: State, job_id: JobId) -> AnyJob:
    """The job stops after the step that runs, writes a checkpoint and waits until it is resumed."""
    return schemas.show_job(state.jobs.pause_job(job_id))


@router.post("/{job_id}/resume", summary="Resume a paused or failed job from its last checkpoint")
def resume_job(state: State, job_id: JobId) -> AnyJob:
    """The job is queued again and goes on from its last checkpoint."""
    return schemas.show_job(state.jobs.resume_job(job_id))


@router.post("/{job_id}/cancel", summary="Cancel: stop at the next step for good")
def cancel_job(state: State, job_id: JobId) -> AnyJob:
    """The job stops after the step that runs, and cannot be resumed."""
    job = state.jobs.cancel_job(job_id)
    if job.state == "cancelled":  # no worker held it, which would have done this
        try:
            state.withdrawable_rankings.withdraw(job_id)
        except (RedisError, OperationalError) as error:
            log.warning("rankings_not_withdrawn", job=job_id, error=describe_redis_error(error))
    return schemas.show_job(job)


@router.patch("/{job_id}/rewards", summary="Change the weights of a job's rewards from its next step on")
def change_weights(state: State, job_id: JobId, body: RewardWeights) -> AnyJob:
    """Each change counts from the first step that begins after it, which `weight_changes` and an event of kind
    `weights_changed` say; groups that were ranked before and are trained on after are ordered by the new weights. A job
    that is resumed, and a replay of it, use the same weights at the same steps.
    """
    job = state.jobs.change_weights(job_id, body)
    log.info("weights_changed", job_id=job_id)
    return schemas.show_job(job)


@router.get("/{job_id}/events", summary="List events, newest first")
def list_events(
    state: State, job_id: JobId, page: Annotated[PageQuery, Query()]
) -> schemas.Paged[schemas.JobEventObject | schemas.UnreadableObject]:
    """The list is a page of what happened to the job."""
    state.jobs.get_job(job_id)
    rows, more = state.jobs.list_events(job_id, after=_parse_event_id(page.after), limit=page.limit)
    return schemas.page_of(schemas.show_rows(rows, schemas.to_event_object), more)


@router.get(
    "/{job_id}/stream",
    summary="Follow events as they happen",
    description=STREAM_DESCRIPTION,
    response_class=StreamingResponse,
    responses={
        200: {"content": {"text/event-stream": {"example": STREAM_EXAMPLE}}},
        204: {"description": "The job has ended and every event was seen."},
        503: {"description": "Too many streams are open."},
    },
)
async def stream_job_events(
    state: State,
    job_id: JobId,
    last_event_id: Annotated[str | None, Header(max_length=32, description="The last `id:` seen.")] = None,
) -> Response:
    cursor = _parse_cursor(last_event_id or "0", "Last-Event-ID")
    if not await state.event_reader.has_more(job_id, cursor):
        return Response(status_code=204)
    return EventStreamResponse(state, job_id, cursor)


class RankingsPageQuery(ListQuery):
    """Pagination of the ledger."""

    after: int = Field(default=0, ge=0, le=2**62, description="`cursor` of the last group already seen.")
    limit: int = Field(default=100, ge=1, le=1000, description="Number of groups on a page.")


@router.get("/{job_id}/rankings", summary="The ledger: every ranking the job trained on, oldest first")
def list_rankings(state: State, job_id: JobId, page: Annotated[RankingsPageQuery, Query()]) -> dict[str, Any]:
    """Each entry is a group of candidates with every reward's scores, enough to audit the job and to replay it."""
    state.jobs.get_job(job_id)
    groups, more = state.ledger.list_groups(job_id, after=page.after, limit=page.limit)
    return {"object": "list", "data": groups, "has_more": more}


def _parse_event_id(event_id: str | None) -> int | None:
    return None if event_id is None else _parse_cursor(event_id.removeprefix("ftevent-"), "after")


def _parse_cursor(text: str, field: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise InvalidInput(f"{field} must be the id of an event", field=field)
    return int(text)
