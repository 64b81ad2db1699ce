"""Routes of the operator: links for raters, how the queue and its raters do, callbacks."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Path, Query
from fastapi.responses import StreamingResponse

from dipole.protocol.rating_queue import JobReport, QueueReport
from dipole_ratings.api.dependencies import Parts, Responses
from dipole_ratings.api.schemas import (
    DeliveryReport,
    Invitation,
    InvitationRequest,
    JobUpdate,
    NewInvitation,
    RaterReport,
    RaterUpdate,
    to_iso,
    to_iso_or_none,
)
from dipole_ratings.queue.deliveries import DeliveryState
from dipole_ratings.queue.raters import InvitationState
from dipole_ratings.reports.export import MEDIA_TYPES, ExportFormat, write_json_lines, write_parquet
from dipole_ratings.reports.rater_quality import RaterFigures

router = APIRouter(prefix="/v1/ratings", tags=["operator"])
InvitationId = Annotated[str, Path(max_length=128, description="Id of the invitation.")]
JobName = Annotated[str, Path(max_length=128, description="Id of the job that asked.")]
Pseudonym = Annotated[str, Path(max_length=128, description="Pseudonym of the rater.")]
DeliveryId = Annotated[str, Path(max_length=128, description="Id of the delivery.")]
FormatQuery = Annotated[ExportFormat, Query(description="Format of the file.")]
_MISSING: Responses = {401: {"description": "No valid key."}, 404: {"description": "There is no such thing."}}
_KEY: Responses = {401: {"description": "No valid key."}}


@router.post("/invitations", status_code=201, summary="Make a link for a new rater", responses=_KEY)
def invite_rater(body: InvitationRequest, parts: Parts) -> NewInvitation:
    """The answer has the link with its secret, which is shown this once."""
    state, token = parts.raters.invite_rater(body.name, body.expires_in_s)
    return NewInvitation(**_invitation(state).model_dump(), link=f"/rate#invitation={token}")


@router.get("/invitations", summary="Links, the newest first", responses=_KEY)
def list_invitations(parts: Parts) -> list[Invitation]:
    """The list has every link, without its secret."""
    return [_invitation(state) for state in parts.raters.list_invitations()]


@router.delete(
    "/invitations/{invitation_id}", status_code=204, summary="Revoke a link and its sessions", responses=_MISSING
)
def revoke_invitation(invitation_id: InvitationId, parts: Parts) -> None:
    """The link opens nothing any more, and its sessions end."""
    parts.raters.revoke_invitation(invitation_id)


@router.get("/status", summary="The queue in figures", responses=_KEY)
def describe_queue(parts: Parts) -> QueueReport:
    """The answer has how much waits, how fast it is answered and how well raters agree."""
    figures = parts.statistics.measure_queue()
    return QueueReport(
        pending=figures.pending,
        leased=figures.leased,
        answered=figures.answered,
        oldest_s=figures.oldest_s,
        ratings_per_hour=figures.ratings_per_hour,
        agreement=parts.judge.measure_agreement(),
        deliveries=parts.outbox.count_deliveries(),
        by_job=[JobReport(**asdict(job)) for job in figures.by_job],
    )


@router.patch("/jobs/{job}", status_code=204, summary="Say how soon a job's tasks are shown", responses=_KEY)
def set_job_priority(job: JobName, body: JobUpdate, parts: Parts) -> None:
    """It holds for the job's tasks that wait and for those to come."""
    parts.statistics.set_job_priority(job, body.priority)


@router.get("/raters", summary="Raters, and how each one does", responses=_KEY)
def list_raters(parts: Parts) -> list[RaterReport]:
    """The list has every rater, with what is known of the quality of their answers."""
    return [_rater(figures) for figures in parts.judge.list_raters()]


@router.patch("/raters/{rater}", status_code=204, summary="Pause a rater, or let one go on", responses=_MISSING)
def update_rater(rater: Pseudonym, body: RaterUpdate, parts: Parts) -> None:
    """A paused rater gets no tasks."""
    parts.raters.pause_rater(rater, body.paused)


@router.delete(
    "/raters/{rater}",
    status_code=204,
    summary="Forget a rater: name, links and texts go, answers stay under a new pseudonym",
    responses=_MISSING,
)
def forget_rater(rater: Pseudonym, parts: Parts) -> None:
    """What is left cannot be traced to the person."""
    parts.raters.forget_rater(rater)


@router.get("/deliveries", summary="Callbacks, the newest first", responses=_KEY)
def list_deliveries(parts: Parts) -> list[DeliveryReport]:
    """The list has the rankings that were sent to whoever asked, or are yet to be."""
    return [_delivery(state) for state in parts.outbox.list_deliveries()]


@router.post("/deliveries/{delivery_id}/resend", summary="Send a callback again", responses=_MISSING)
def resend_delivery(delivery_id: DeliveryId, parts: Parts) -> DeliveryReport:
    """The ranking is sent once more, also where it was given up."""
    return _delivery(parts.outbox.resend(delivery_id))


@router.get(
    "/export",
    summary="What people said, as pairs that the trainer takes",
    response_class=StreamingResponse,
    responses={
        **_KEY,
        200: {"content": {each: {} for each in MEDIA_TYPES.values()}, "description": "Pairs, a row each."},
    },
)
def export_answers(parts: Parts, format: FormatQuery = "jsonl") -> StreamingResponse:
    """The answer is a file of pairs, chosen and rejected, that jobs take as `training_file`."""
    write = write_json_lines if format == "jsonl" else write_parquet
    headers = {"Content-Disposition": f'attachment; filename="ratings.{format}"'}
    return StreamingResponse(write(parts.context), media_type=MEDIA_TYPES[format], headers=headers)


def _invitation(state: InvitationState) -> Invitation:
    return Invitation.model_validate(
        asdict(state)
        | {
            "created_at": to_iso(state.created_at),
            "expires_at": to_iso_or_none(state.expires_at),
            "last_seen": to_iso_or_none(state.last_seen),
        }
    )


def _rater(figures: RaterFigures) -> RaterReport:
    quality = figures.quality
    return RaterReport(
        rater=figures.rater,
        name=figures.name,
        answers=figures.answers,
        repeats_agreed=figures.repeats_agreed,
        gold_right=figures.gold_right,
        agreement=quality.tau if quality else None,
        hasty=quality.hasty if quality else None,
        weight=figures.weight,
        paused=figures.paused,
        last_seen=to_iso_or_none(figures.last_seen),
    )


def _delivery(state: DeliveryState) -> DeliveryReport:
    return DeliveryReport.model_validate(
        asdict(state)
        | {
            "next_at": to_iso_or_none(state.next_at),
            "created_at": to_iso(state.created_at),
            "delivered_at": to_iso_or_none(state.delivered_at),
        }
    )
