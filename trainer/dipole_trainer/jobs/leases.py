"""The worker's side of the job store: a lease, its heartbeats, and every write under a fencing number.

A worker holds a job under a lease that its heartbeats renew. Every claim raises the job's fence and every write carries
it, so a worker that was taken for dead gets LeaseLost and changes nothing. The heartbeat answers what is desired.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast

from sqlalchemy import ColumnElement, and_, delete, exists, or_, select, update
from sqlalchemy.orm import Session

from dipole.errors import LeaseLost
from dipole_trainer.database.engine import Database, now
from dipole_trainer.database.queries import time_of
from dipole_trainer.database.tables import Checkpoint, Job
from dipole_trainer.jobs.transitions import drop_lease, end, locked, record, settle, stop_waiting, survives
from dipole_trainer.jsonable import plain
from dipole_trainer.spec import TrainSpec

Desired = Literal["run", "pause", "cancel"]
WAIT_S = (2.0, 4.0, 8.0, 16.0, 32.0, 60.0)  # seconds between looks at a reward that is away
MAX_RESUMES = 5  # resumes without a step between, after which a job no longer resumes by itself


@dataclass(frozen=True)
class Claim:
    """A worker's hold on a job; `fence` proves it. `step` is the last step that an earlier hold reported."""

    job_id: str
    fence: int
    worker: str
    stored_spec: str
    step: int

    @cached_property
    def spec(self) -> TrainSpec:
        """Read when asked for, so that a job that cannot be read can be claimed and ended. Raises InvalidInput."""
        return TrainSpec.stored(self.stored_spec)


class Leases:
    """Who trains what, over one Database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def claim(self, worker: str, lease_s: float, *, job_id: str | None = None) -> Claim | None:
        """Take the oldest job that nobody trains (or this one), for `lease_s` seconds; None when there is none.

        Claiming a job that another worker holds is a no-op. A job whose lease ran out comes with a higher fence.
        """
        ready = or_(Job.state == "queued", _expired())
        if job_id is not None:
            ready = and_(ready, Job.id == job_id)
        with self.database.reading() as session:  # idle workers ask often: do not take SQLite's write lock for it
            if not session.scalar(select(exists().where(ready))):
                return None
        with self.database.writing() as session:
            query = select(Job).where(ready).order_by(Job.seq).limit(1).with_for_update(skip_locked=True)
            while (job := session.scalar(query)) is not None:
                if job.state == "running" and not survives(session, job):
                    session.flush()
                    continue
                return _grant(session, job, worker, lease_s)
        return None

    def heartbeat(self, claim: Claim, lease_s: float) -> Desired:
        """Renew the lease; what is desired of the job now. Raises LeaseLost."""
        renew = (
            update(Job)
            .where(Job.id == claim.job_id, Job.fence == claim.fence, Job.state == "running")
            .values(lease_expires=now() + lease_s)
            .returning(Job.desired)
        )
        with self.database.writing() as session:
            desired = session.scalar(renew)
        if desired is None:
            raise _lost(claim)
        return cast(Desired, desired)

    def append_event(
        self, claim: Claim, kind: str, message: str, data: Mapping[str, Any], *, level: str = "info"
    ) -> int:
        """Write an event under the claim; its cursor. A "step" event also moves the job's step and ETA."""
        with self.database.writing() as session:
            job = held(session, claim)
            if kind == "step":
                job.step, job.eta_s = int(data["step"]), plain(data.get("eta_s"))
                job.waiting_tries, job.waiting_resumes = 0, 0
            return record(session, job, kind, message, level=level, data=data)

    def add_checkpoint(
        self, claim: Claim, step: int, path: str, metrics: Mapping[str, Any], *, kept: Collection[int]
    ) -> Checkpoint:
        """Record a checkpoint and its event, and forget those whose step is not in `kept`: they were pruned."""
        with self.database.writing() as session:
            job = held(session, claim)
            job.crashes = 0
            row = session.scalar(select(Checkpoint).where(Checkpoint.job_id == job.id, Checkpoint.step == step))
            if row is None:
                row = Checkpoint(id=f"ftckpt-{secrets.token_hex(12)}", job_id=job.id, step=step)
            row.path, row.metrics, row.created_at = path, plain(metrics), time_of(session)
            session.add(row)
            pruned = delete(Checkpoint).where(Checkpoint.job_id == job.id, Checkpoint.step.not_in([*kept, step]))
            session.execute(pruned)
            data = {"step": step, "path": path, "checkpoint": row.id}
            record(session, job, "checkpoint", f"Checkpoint at step {step}", data=data)
        return row

    def finish(
        self,
        claim: Claim,
        outcome: Literal["succeeded", "paused", "cancelled", "failed"],
        *,
        error: Mapping[str, Any] | None = None,
    ) -> str:
        """End this worker's hold with an outcome; the job's state now. Resumed while it paused, it is queued again."""
        with self.database.writing() as session:
            job = held(session, claim)
            if outcome == "paused":
                return settle(session, job, "Stopped with a checkpoint")
            job.error = plain(error) if error else None
            message = f"Job {outcome}" + (f": {error['message']}" if error else "")
            end(session, job, outcome, message, data=dict(error or {}))
            return job.state

    def release(self, claim: Claim, reason: str) -> str:
        """Give the job back unfinished, for another worker to go on from its last checkpoint."""
        with self.database.writing() as session:
            return settle(session, held(session, claim), reason, kind="released")

    def wait_for_reward(self, claim: Claim, reward: str, reason: str) -> str:
        """Pause because a required reward is away; `due_waits` tells when to look whether it is back."""
        with self.database.writing() as session:
            job = held(session, claim)
            if job.desired != "run":
                return settle(session, job, reason)
            job.state, job.waiting_reward, job.waiting_reason = "paused", reward, plain(reason)
            _next_wait(session, job)
            drop_lease(job)
            then = "goes on by itself when it is back"
            if job.waiting_resumes >= MAX_RESUMES:  # the endpoint says it is ready, yet ranks nothing
                job.waiting_until = None
                then = f"it was resumed {MAX_RESUMES} times without one step: mend the cause, then resume the job"
            data = {"reward": reward, "reason": reason}
            message = f"Paused: reward {reward} is unavailable ({reason}); {then}"
            record(session, job, "paused", message, level="warn", data=data)
            return job.state

    # ---- jobs that wait for a reward ----------------------------------------------------------------------------

    def due_waits(self) -> list[tuple[str, str]]:
        """(job, reward) whose endpoint should be looked at now; the next look is booked, so one worker does it."""
        due = and_(Job.state == "paused", Job.waiting_reward.is_not(None), Job.waiting_until < now())
        with self.database.reading() as session:
            if not session.scalar(select(exists().where(due))):
                return []
        with self.database.writing() as session:
            jobs = session.scalars(select(Job).where(due).with_for_update(skip_locked=True)).all()
            for job in jobs:
                _next_wait(session, job)
            return [(job.id, str(job.waiting_reward)) for job in jobs]

    def reward_is_back(self, job_id: str, reward: str) -> bool:
        """Queue the job again if it still waits for this reward."""
        with self.database.writing() as session:
            job = locked(session, job_id)
            if job.state != "paused" or job.waiting_reward != reward:
                return False
            stop_waiting(job)
            job.state, job.waiting_resumes = "queued", job.waiting_resumes + 1
            record(session, job, "queued", f"Reward {reward} is back: waiting for a worker", data={"reward": reward})
            return True


def _expired() -> ColumnElement[bool]:
    return and_(Job.state == "running", Job.lease_expires < now())


def held(session: Session, claim: Claim) -> Job:
    """The claimed job, locked, or LeaseLost."""
    claimed = select(Job).where(Job.id == claim.job_id, Job.fence == claim.fence, Job.state == "running")
    job = session.scalar(claimed.with_for_update())
    if job is None:
        raise _lost(claim)
    return job


def _lost(claim: Claim) -> LeaseLost:
    return LeaseLost(f"{claim.worker} no longer holds job {claim.job_id} (fence {claim.fence})")


def _grant(session: Session, job: Job, worker: str, lease_s: float) -> Claim:
    """The lease and a higher fence."""
    time = time_of(session)
    job.state, job.worker, job.lease_expires, job.fence = "running", worker, time + lease_s, job.fence + 1
    job.started_at = job.started_at or time
    record(session, job, "running", "Training", data={"worker": worker, "fence": job.fence})
    return Claim(job_id=job.id, fence=job.fence, worker=worker, stored_spec=job.spec, step=job.step)


def _next_wait(session: Session, job: Job) -> None:
    pause = WAIT_S[min(job.waiting_tries, len(WAIT_S) - 1)]
    job.waiting_tries, job.waiting_until = job.waiting_tries + 1, time_of(session) + pause
