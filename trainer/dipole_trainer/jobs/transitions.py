"""State transitions of a job, for callers whose transaction has locked its row; JobStore and LeaseStore are made of
them.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any, Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from dipole.database.queries import database_time, require
from dipole.errors import Conflict
from dipole.protocol import job_events
from dipole.protocol.job_events import EventLevel, JobEvent
from dipole_trainer.database.tables import EventRow, JobRow, WebhookRow
from dipole_trainer.jsonable import to_jsonable
from dipole_trainer.spec import TrainSpec

MAX_CRASHES = 5  # a job whose worker dies so often without a checkpoint between is failed, not tried for ever


def lock_job(session: Session, job_id: str) -> JobRow:
    """The job, with its row locked until the transaction ends."""
    return require(session.scalar(select(JobRow).where(JobRow.id == job_id).with_for_update()), job_id)


def lock_open_job(session: Session, job_id: str, verb: str) -> JobRow:
    """The job, locked; Conflict when it has ended."""
    job = lock_job(session, job_id)
    if job.state in ("succeeded", "failed", "cancelled"):
        raise Conflict(f"job {job_id} has {job.state} and cannot be {verb}")
    return job


def record_event(session: Session, job: JobRow, event: JobEvent) -> int:
    """Write an event; its id is the cursor. The row lock of the caller makes one job's ids commit in order."""
    return record_report(session, job, event.kind, event.data(), message=event.text(), level=event.level)


def record_report(
    session: Session, job: JobRow, kind: str, data: Mapping[str, Any], *, message: str, level: EventLevel
) -> int:
    """As `record_event`, of what came as a kind and its data."""
    event = EventRow(
        job_id=job.id,
        created_at=database_time(session),
        kind=kind,
        level=level,
        message=to_jsonable(message),
        data=to_jsonable(data),
    )
    session.add(event)
    session.flush()
    return event.id


def request_stop(session: Session, job: JobRow, desired: Literal["pause", "cancel"]) -> None:
    """Ask the worker to pause or cancel; do it at once when no worker holds the job."""
    job.desired = desired
    held = job.state == "running" and (job.lease_expires or 0) >= database_time(session)
    if held:
        record_event(session, job, job_events.PauseRequested() if desired == "pause" else job_events.CancelRequested())
    else:
        settle_unheld(session, job, "No worker was training it")


def settle_unheld(session: Session, job: JobRow, reason: str, *, released: bool = False) -> str:
    """Move a job without a worker to its desired state; returns the new state. `released`: a worker gave it back."""
    if job.desired == "cancel":
        end_job(session, job, "cancelled", job_events.UnheldJobCancelled(reason=reason))
        return job.state
    drop_lease(job)
    job.state = "paused" if job.desired == "pause" else "queued"
    if released:
        event: JobEvent = job_events.JobReleased(state=job.state, reason=reason)
    elif job.state == "paused":
        event = job_events.JobPaused(reason=reason)
    else:
        event = job_events.JobQueued(reason=f"Job queued: {reason}")
    record_event(session, job, event)
    return job.state


def end_job(session: Session, job: JobRow, state: str, event: JobEvent) -> None:
    drop_lease(job)
    clear_waiting(job)
    job.state, job.finished_at, job.eta_s = state, database_time(session), None
    if state != "failed" and (weights := _weights_that_wait(job)):  # a failed job may be resumed, and begin with them
        record_event(session, job, job_events.WeightsNotChanged(weights=weights))
    record_event(session, job, event)
    _owe_webhooks(session, job)


def _weights_that_wait(job: JobRow) -> dict[str, float]:
    """Of rewards whose weight would be another if a step had begun with what was asked for."""
    rewards = job.summary.get("rewards", ()) if isinstance(job.summary, dict) else ()
    weights: dict[str, float] = {each["name"]: each["weight"] for each in rewards}
    waiting: dict[str, float] = {}
    for each in job.weight_changes or ():
        (waiting if each["step"] is None else weights).update(each["weights"])
    return {name: weight for name, weight in waiting.items() if weight != weights.get(name)}


def _owe_webhooks(session: Session, job: JobRow) -> None:
    """Write down whom to tell that the job has ended; webhooks.py has what becomes of it.

    A job whose summary is damaged ends as any other, and tells nobody.
    """
    for url in (job.summary.get("notify") or ()) if isinstance(job.summary, dict) else ():
        session.add(
            WebhookRow(
                id=f"evt_{secrets.token_hex(12)}",
                job_id=job.id,
                ending=job.state,
                url=url,
                state="waiting",
                attempts=0,
                next_at=job.finished_at,
                created_at=job.finished_at,
            )
        )


def may_retry_after_crash(session: Session, job: JobRow) -> bool:
    """Whether a running job whose lease ran out may be tried again; otherwise it is settled or failed here."""
    record_event(session, job, job_events.LeaseExpired(worker=job.worker))
    if job.desired != "run":
        settle_unheld(session, job, "its worker has gone silent")
        return False
    job.crashes += 1
    if job.crashes <= MAX_CRASHES:
        return True
    message = f"its worker died {job.crashes} times after step {job.step} without a checkpoint between"
    job.error = {"code": "worker_died", "message": message}
    end_job(session, job, "failed", job_events.JobFailed(figures=job.error))
    return False


def drop_lease(job: JobRow) -> None:
    job.worker, job.lease_expires = None, None


def clear_waiting(job: JobRow) -> None:
    job.waiting_reward, job.waiting_reason, job.waiting_until = None, None, None


def summarize_spec(spec: TrainSpec) -> dict[str, Any]:
    """The spec for showing: counts stand for prompts, of which there may be a million."""
    shown = spec.model_dump(mode="json", exclude={"prompts": True, "evaluation": {"prompts"}})
    shown["evaluation"]["prompt_count"] = len(spec.evaluation.prompts)
    return {**shown, "prompt_count": len(spec.prompts)}
