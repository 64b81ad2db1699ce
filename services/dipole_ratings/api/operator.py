"""Routes of the operator: links for raters, how the queue and its raters do, callbacks."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Path
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
Identifier = Annotated[str, Path(max_length=128)]
_MISSING: Responses = {401: {"description": "No valid key."}, 404: {"description": "There is no such thing."}}
_KEY: Responses = {401: {"description": "No valid key."}}


@router.post("/invitations", status_code=201, summary="Make a link for a new rater", responses=_KEY)
def invite_rater(body: InvitationRequest, parts: Parts) -> NewInvitation:
    state, token = parts.raters.invite_rater(body.name, body.expires_in_s)
    return NewInvitation(**_invitation(state).model_dump(), link=f"/rate#invitation={token}")


@router.get("/invitations", summary="Links, the newest first", responses=_KEY)
def list_invitations(parts: Parts) -> list[Invitation]:
    return [_invitation(state) for state in parts.raters.list_invitations()]


@router.delete(
    "/invitations/{invitation_id}", status_code=204, summary="Revoke a link and its sessions", responses=_MISSING
)
def revoke_invitation(invitation_id: Identifier, parts: Parts) -> None:
    parts.raters.revoke_invitation(invitation_id)


@router.get("/status", summary="The queue in figures", responses=_KEY)
def describe_queue(parts: Parts) -> QueueReport:
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
def set_job_priority(job: Identifier, body: JobUpdate, parts: Parts) -> None:
    parts.statistics.set_job_priority(job, body.priority)


@router.get("/raters", summary="Raters, and how each one does", responses=_KEY)
def list_raters(parts: Parts) -> list[RaterReport]:
    return [_rater(figures) for figures in parts.judge.list_raters()]


@router.patch("/raters/{rater}", status_code=204, summary="Pause a rater, or let one go on", responses=_MISSING)
def update_rater(rater: Identifier, body: RaterUpdate, parts: Parts) -> None:
    parts.raters.pause_rater(rater, body.paused)


@router.delete(
    "/raters/{rater}",
    status_code=204,
    summary="Forget a rater: name, links and texts go, answers stay under a new pseudonym",
    responses=_MISSING,
)
def forget_rater(rater: Identifier, parts: Parts) -> None:
    parts.raters.forget_rater(rater)


@router.get("/deliveries", summary="Callbacks, the newest first", responses=_KEY)
def list_deliveries(parts: Parts) -> list[DeliveryReport]:
    return [_delivery(state) for state in parts.outbox.list_deliveries()]


@router.post("/deliveries/{delivery_id}/resend", summary="Send a callback again", responses=_MISSING)
def resend_delivery(delivery_id: Identifier, parts: Parts) -> DeliveryReport:
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
def export_answers(parts: Parts, format: ExportFormat = "jsonl") -> StreamingResponse:
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
