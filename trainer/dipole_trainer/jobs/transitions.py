"""Steps of a job's life inside a transaction that has locked its row; JobStore and Leases are made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from dipole.errors import Conflict
from dipole_trainer.database.queries import found, time_of
from dipole_trainer.database.tables import Event, Job
from dipole_trainer.jsonable import plain
from dipole_trainer.spec import TrainSpec

MAX_CRASHES = 5  # a job whose worker dies so often without a checkpoint between is failed, not tried for ever


def locked(session: Session, job_id: str) -> Job:
    """The job, with its row locked until the transaction ends."""
    return found(session.scalar(select(Job).where(Job.id == job_id).with_for_update()), job_id)


def open_job(session: Session, job_id: str, verb: str) -> Job:
    """The job, locked; Conflict when it has ended."""
    job = locked(session, job_id)
    if job.state in ("succeeded", "failed", "cancelled"):
        raise Conflict(f"job {job_id} has {job.state} and cannot be {verb}")
    return job


def record(
    session: Session,
    job: Job,
    kind: str,
    message: str,
    *,
    level: str = "info",
    data: Mapping[str, Any] | None = None,
) -> int:
    """Write an event; its id is the cursor. The row lock of the caller makes one job's ids commit in order."""
    event = Event(
        job_id=job.id,
        created_at=time_of(session),
        kind=kind,
        level=level,
        message=plain(message),
        data=plain(data or {}),
    )
    session.add(event)
    session.flush()
    return event.id


def ask(session: Session, job: Job, desired: str, message: str) -> None:
    """Ask the worker to pause or cancel; do it at once when no worker holds the job."""
    job.desired = desired
    held = job.state == "running" and (job.lease_expires or 0) >= time_of(session)
    if held:
        record(session, job, f"{desired}_requested", message)
    else:
        settle(session, job, "No worker was training it")


def settle(session: Session, job: Job, reason: str, *, kind: str | None = None) -> str:
    """Take a job that nobody trains to the state it should have; the state."""
    if job.desired == "cancel":
        end(session, job, "cancelled", f"Job cancelled: {reason}")
        return job.state
    drop_lease(job)
    job.state = "paused" if job.desired == "pause" else "queued"
    record(session, job, kind or job.state, f"Job {job.state}: {reason}")
    return job.state


def end(session: Session, job: Job, state: str, message: str, data: Mapping[str, Any] | None = None) -> None:
    drop_lease(job)
    stop_waiting(job)
    job.state, job.finished_at, job.eta_s = state, time_of(session), None
    record(session, job, state, message, level="error" if state == "failed" else "info", data=data)


def survives(session: Session, job: Job) -> bool:
    """Whether a running job whose lease ran out may be tried again; otherwise it is settled or failed here."""
    record(session, job, "lease_expired", f"Worker {job.worker} has gone silent", level="warn")
    if job.desired != "run":
        settle(session, job, "its worker has gone silent")
        return False
    job.crashes += 1
    if job.crashes <= MAX_CRASHES:
        return True
    message = f"its worker died {job.crashes} times after step {job.step} without a checkpoint between"
    job.error = {"code": "worker_died", "message": message}
    end(session, job, "failed", f"Job failed: {message}", data=job.error)
    return False


def drop_lease(job: Job) -> None:
    job.worker, job.lease_expires = None, None


def stop_waiting(job: Job) -> None:
    job.waiting_reward, job.waiting_reason, job.waiting_until = None, None, None


def summary_of(spec: TrainSpec) -> dict[str, Any]:
    """The spec for showing: counts stand for prompts, of which there may be a million."""
    shown = spec.model_dump(mode="json", exclude={"prompts": True, "evaluation": {"prompts"}})
    shown["evaluation"]["prompt_count"] = len(spec.evaluation.prompts)
    return {**shown, "prompt_count": len(spec.prompts)}
