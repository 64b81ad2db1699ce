"""Routes of the rater's page. A rater comes by an invitation and is known by a cookie; nothing here tells of scores."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Request, Response

from dipole_ratings.api.dependencies import Parts, Responses
from dipole_ratings.api.schemas import (
    AnswerReceipt,
    AnswerRequest,
    LeaseExtension,
    LeaseMessage,
    RaterState,
    SessionRequest,
    to_iso,
)
from dipole_ratings.queue.raters import DAY_S, CurrentRater
from dipole_rewards.server.idempotency import check_key

COOKIE = "dipole_rater"
NOTHING_RETRY_S = 5
MAX_DIGITS = 128

router = APIRouter(prefix="/v1/rater", tags=["rater"])
LeaseId = Annotated[str, Path(max_length=MAX_DIGITS, description="Id of the lease.")]
AnswerId = Annotated[str, Path(max_length=MAX_DIGITS, description="Id of the answer.")]
ImageId = Annotated[str, Path(max_length=MAX_DIGITS, description="Id of the image.")]


def current_rater(request: Request, parts: Parts) -> CurrentRater:
    return parts.raters.find_session(request.cookies.get(COOKIE))


Rater = Annotated[CurrentRater, Depends(current_rater)]
_NO_SESSION: Responses = {401: {"description": "No session: open the invitation's link again."}}
_ERRORS: Responses = {**_NO_SESSION, 404: {"description": "No such thing of this rater's."}}


@router.post("/session", status_code=204, summary="Come by an invitation", responses=_NO_SESSION)
def start_session(body: SessionRequest, request: Request, response: Response, parts: Parts) -> None:
    """The answer sets a cookie that the rater's other requests are known by."""
    _, token = parts.raters.start_session(body.invitation)
    response.set_cookie(
        COOKIE,
        token,
        max_age=int(parts.settings.ratings_session_days * DAY_S),
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="strict",
    )


@router.delete("/session", status_code=204, summary="Leave: what is held is given back")
def end_session(request: Request, response: Response, parts: Parts) -> None:
    """Tasks that the rater holds go back to the queue, and the cookie is dropped."""
    parts.raters.end_session(request.cookies.get(COOKIE))
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")


@router.get("", summary="Who one is, and what is to be done", responses=_NO_SESSION)
def describe_rater(rater: Rater, parts: Parts) -> RaterState:
    """The answer is what the rater's page shows at its top."""
    answered, today = parts.raters.count_answers(rater.seq)
    waiting = 0 if rater.paused else parts.leases.count_waiting(rater.seq)
    return RaterState(
        rater=rater.pseudonym, answered=answered, answered_today=today, waiting=waiting, paused=rater.paused
    )


@router.post(
    "/leases",
    status_code=201,
    summary="Take a task, or the one that is held already",
    response_model=LeaseMessage,
    responses={
        **_NO_SESSION,
        200: {"model": LeaseMessage, "description": "The lease that is held already."},
        204: {"description": "Nothing to do: ask again after Retry-After seconds."},
        403: {"description": "The operator has paused this rater."},
    },
)
def take_lease(rater: Rater, parts: Parts, response: Response) -> LeaseMessage | Response:
    """The rater holds the task for a while and shall extend the hold while looking."""
    lease = parts.leases.take_lease(rater.seq)
    if lease is None:
        return Response(status_code=204, headers={"Retry-After": str(NOTHING_RETRY_S)})
    if not lease.is_new:
        response.status_code = 200
    return LeaseMessage.of(lease, parts.settings.ratings_heartbeat_s)


@router.put(
    "/leases/{lease_id}",
    summary="A sign of life: hold a task for longer",
    responses={**_ERRORS, 410: {"description": "The hold has ended."}},
)
def extend_lease(lease_id: LeaseId, rater: Rater, parts: Parts) -> LeaseExtension:
    """The hold begins anew."""
    expires_at, seconds = parts.leases.extend_lease(rater.seq, lease_id)
    return LeaseExtension(expires_at=to_iso(expires_at), expires_in_s=seconds)


@router.delete("/leases/{lease_id}", status_code=204, summary="Give a task back", responses=_ERRORS)
def release_lease(lease_id: LeaseId, rater: Rater, parts: Parts) -> None:
    """The task goes back to the queue."""
    parts.leases.release_lease(rater.seq, lease_id)


@router.post(
    "/leases/{lease_id}/answer",
    status_code=201,
    summary="Answer a task: tiers, a reason to skip, or that none is usable",
    responses={
        **_ERRORS,
        409: {"description": "It has an answer already."},
        410: {"description": "It was given back."},
        422: {"description": "A label is missing, unknown or stands in two places."},
    },
)
def submit_answer(
    lease_id: LeaseId,
    body: AnswerRequest,
    rater: Rater,
    parts: Parts,
    idempotency_key: Annotated[
        str | None, Header(description="A repeat with the same key gets the first receipt.")
    ] = None,
) -> AnswerReceipt:
    """The answer is kept for good, and counts while the task has a place for it."""
    key = None if idempotency_key is None else check_key(idempotency_key)
    kept = parts.answers.submit_answer(rater.seq, lease_id, body.to_answer(), key)
    return AnswerReceipt(id=kept.id, counted=kept.counted, undo=True)


@router.delete(
    "/answers/{answer_id}",
    summary="Undo an answer: its task is held again",
    responses={**_ERRORS, 409: {"description": "It was delivered, or undone already."}},
)
def undo_answer(answer_id: AnswerId, rater: Rater, parts: Parts) -> LeaseMessage:
    """An answer can be undone until its task's ranking has been delivered."""
    lease = parts.answers.undo_answer(rater.seq, answer_id)
    return LeaseMessage.of(lease, parts.settings.ratings_heartbeat_s)


@router.get(
    "/images/{image_id}",
    summary="An image that one was shown",
    response_class=Response,
    responses={**_ERRORS, 200: {"content": {"image/png": {}}, "description": "A PNG of pixels and nothing else."}},
)
def get_image(image_id: ImageId, rater: Rater, parts: Parts) -> Response:
    """The image is shown to raters who hold or held a task with it, and to nobody else."""
    png = parts.leases.get_image(rater.seq, image_id)
    headers = {"Cache-Control": "private, max-age=3600, immutable", "X-Content-Type-Options": "nosniff"}
    return Response(png, media_type="image/png", headers=headers)
