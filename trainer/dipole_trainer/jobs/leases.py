"""The worker's side of the job store: a lease, its heartbeats, and every write under a fencing number.

A worker holds a job under a lease that its heartbeats renew. Every claim raises the job's fence and every write carries
it, so a worker that was taken for dead gets LeaseLost and changes nothing. The heartbeat answers what is desired.

The database's clock may be set back, by hours. What was to end soon would then end in hours, and a job whose worker
died meanwhile would lie for as long: a time further ahead than anybody sets one counts as over.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast

from sqlalchemy import ColumnElement, and_, delete, exists, or_, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from dipole.database.queries import database_time
from dipole.errors import LeaseLost
from dipole.protocol import job_events
from dipole.protocol.job_events import JobEvent
from dipole_trainer.database.engine import Database, now
from dipole_trainer.database.tables import CheckpointRow, JobRow
from dipole_trainer.jobs.transitions import (
    clear_waiting,
    drop_lease,
    end_job,
    lock_job,
    may_retry_after_crash,
    record_event,
    record_report,
    settle_unheld,
)
from dipole_trainer.jsonable import to_jsonable
from dipole_trainer.ranking.weight_changes import WeightChange, describe_change, read_weight_changes
from dipole_trainer.spec import TrainSpec

DesiredState = Literal["run", "pause", "cancel"]
REWARD_POLL_DELAYS_S = (
    2.0,
    4.0,
    8.0,
    16.0,
    32.0,
    60.0,
)  # seconds between readiness polls of an unavailable reward; the last repeats
LONGEST_LEASES = 10.0  # of ours: workers' DIPOLE_LEASE_S may differ for a while, but hardly by more
MAX_FRUITLESS_RESUMES = 5  # resumes without a step between, after which a job no longer resumes by itself


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
        return TrainSpec.from_stored(self.stored_spec)


class LeaseStore:
    """Who trains what, over one Database."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def claim_job(self, worker: str, lease_s: float, *, job_id: str | None = None) -> Claim | None:
        """Take the oldest job that nobody trains (or this one), for `lease_s` seconds; None when there is none.

        Claiming a job that another worker holds is a no-op. A job whose lease ran out comes with a higher fence.
        """
        ready = or_(JobRow.state == "queued", _lease_expired(lease_s))
        if job_id is not None:
            ready = and_(ready, JobRow.id == job_id)
        # idle workers ask often: do not take SQLite's write lock for it
        with self.database.reading() as session:
            if not session.scalar(select(exists().where(ready))):
                return None
        with self.database.writing() as session:
            query = select(JobRow).where(ready).order_by(JobRow.seq).limit(1).with_for_update(skip_locked=True)
            while (job := session.scalar(query)) is not None:
                if job.state == "running" and not may_retry_after_crash(session, job):
                    session.flush()
                    continue
                return _grant_lease(session, job, worker, lease_s)
        return None

    def renew_lease(self, claim: Claim, lease_s: float) -> DesiredState:
        """Renew the lease; what is desired of the job now. Raises LeaseLost."""
        renew = (
            update(JobRow)
            .where(JobRow.id == claim.job_id, JobRow.fence == claim.fence, JobRow.state == "running")
            .values(lease_expires=now() + lease_s)
            .returning(JobRow.desired)
        )
        with self.database.writing() as session:
            desired = session.scalar(renew)
        if desired is None:
            raise _lease_lost(claim)
        return cast(DesiredState, desired)

    def append_event(self, claim: Claim, kind: str, data: Mapping[str, Any]) -> int:
        """Write what a session reports; its cursor. A finished step also moves the job's step and ETA."""
        with self.database.writing() as session:
            job = lock_claimed_job(session, claim)
            before = job.summary.get("pending_rankings") or {}
            if kind == job_events.StepFinished.kind:
                before = {}
                job.step, job.eta_s = int(data["step"]), to_jsonable(data.get("eta_s"))
                job.waiting_tries, job.waiting_resumes = 0, 0
            if (pending := job_events.pending_rankings(kind, data)) is not None:
                job.summary = {**job.summary, "pending_rankings": to_jsonable({**before, **pending})}
            message, level = job_events.describe_event(kind, data)
            return record_report(session, job, kind, data, message=message, level=level)

    def take_weight_changes(self, claim: Claim, step: int) -> list[WeightChange]:
        """Every change of the job's weights; those that no step began with yet count from `step`, as an event says.

        A job that is about to end at `step` begins no other: what was asked for since its last step never counts.
        """
        with self.database.reading() as session:
            query = select(JobRow.weight_changes, JobRow.steps).where(JobRow.id == claim.job_id)
            stored, steps = session.execute(query).one()
        if step >= steps or all(each["step"] is not None for each in stored or ()):
            return read_weight_changes(stored)
        with self.database.writing() as session:
            job = lock_claimed_job(session, claim)
            changes = read_weight_changes(job.weight_changes)
            for number, change in enumerate(changes):
                if change.step is None:
                    # a run that goes on from before an earlier change keeps their order
                    first = max([step, *(each.step for each in changes[:number] if each.step is not None)])
                    changes[number] = change.model_copy(update={"step": first})
                    weights = describe_change(claim.spec.rewards, changes, number)
                    record_event(session, job, job_events.WeightsChanged(step=first, weights=weights))
            job.weight_changes = [each.model_dump(mode="json") for each in changes]
        return changes

    def add_checkpoint(
        self, claim: Claim, step: int, path: str, metrics: Mapping[str, Any], *, kept: Collection[int]
    ) -> CheckpointRow:
        """Record a checkpoint and its event, and forget those whose step is not in `kept`: they were pruned."""
        with self.database.writing() as session:
            job = lock_claimed_job(session, claim)
            job.crashes = 0
            row = session.scalar(
                select(CheckpointRow).where(CheckpointRow.job_id == job.id, CheckpointRow.step == step)
            )
            if row is None:
                row = CheckpointRow(id=f"ftckpt-{secrets.token_hex(12)}", job_id=job.id, step=step)
            row.path, row.metrics, row.created_at = path, to_jsonable(metrics), database_time(session)
            session.add(row)
            pruned = delete(CheckpointRow).where(
                CheckpointRow.job_id == job.id, CheckpointRow.step.not_in([*kept, step])
            )
            session.execute(pruned)
            written = job_events.CheckpointWritten(step=step, path=path, figures={"checkpoint": row.id})
            record_event(session, job, written)
        return row

    def finish_job(
        self,
        claim: Claim,
        outcome: Literal["succeeded", "paused", "cancelled", "failed"],
        *,
        error: Mapping[str, Any] | None = None,
    ) -> str:
        """End this worker's hold with an outcome; the job's state now. Resumed while it paused, it is queued again."""
        with self.database.writing() as session:
            job = lock_claimed_job(session, claim)
            if outcome == "paused":
                return settle_unheld(session, job, "Stopped with a checkpoint")
            job.error = to_jsonable(error) if error else None
            event: JobEvent = job_events.JobSucceeded() if outcome == "succeeded" else job_events.JobCancelled()
            end_job(session, job, outcome, job_events.JobFailed(figures=error or {}) if outcome == "failed" else event)
            return job.state

    def release_job(self, claim: Claim, reason: str) -> str:
        """Give the job back unfinished, for another worker to go on from its last checkpoint."""
        with self.database.writing() as session:
            return settle_unheld(session, lock_claimed_job(session, claim), reason, released=True)

    def wait_for_reward(self, claim: Claim, reward: str, reason: str) -> str:
        """Pause because a required reward is away; `take_due_waits` tells when to look whether it is back."""
        return self._wait(claim, reward, reason)

    def wait_for_storage(self, claim: Claim, reason: str) -> str:
        """Pause because the job's files cannot be written or read; `take_due_waits` tells when to look again."""
        return self._wait(claim, None, reason)

    def _wait(self, claim: Claim, reward: str | None, reason: str) -> str:
        with self.database.writing() as session:
            job = lock_claimed_job(session, claim)
            if job.desired != "run":
                return settle_unheld(session, job, reason)
            job.state, job.waiting_reward, job.waiting_reason = "paused", reward, to_jsonable(reason)
            _schedule_next_look(session, job)
            drop_lease(job)
            then = "goes on by itself when it is back" if reward else "goes on by itself when its files can be stored"
            # what is waited for seems to be back, yet no step is made
            if job.waiting_resumes >= MAX_FRUITLESS_RESUMES:
                job.waiting_until = None
                then = f"it was resumed {MAX_FRUITLESS_RESUMES} times without one step: "
                then += "mend the cause, then resume the job"
            event = (
                job_events.JobWaitsForReward(reward=reward, reason=reason, then=then)
                if reward
                else job_events.JobWaitsForStorage(reason=reason, then=then)
            )
            record_event(session, job, event)
            return job.state

    # ---- jobs that wait for a reward, or for their files -----------------------------------------------------------

    def take_due_waits(self) -> list[tuple[str, str | None]]:
        """(job, reward) whose endpoint is to be looked at now, or the files' store where there is no reward; the next
        look is scheduled here, so one worker looks.
        """
        waits = or_(JobRow.waiting_reward.is_not(None), JobRow.waiting_reason.is_not(None))
        is_over = _is_over(JobRow.waiting_until, 2 * REWARD_POLL_DELAYS_S[-1])
        due = and_(JobRow.state == "paused", waits, is_over)
        with self.database.reading() as session:
            if not session.scalar(select(exists().where(due))):
                return []
        with self.database.writing() as session:
            jobs = session.scalars(select(JobRow).where(due).with_for_update(skip_locked=True)).all()
            for job in jobs:
                _schedule_next_look(session, job)
            return [(job.id, job.waiting_reward) for job in jobs]

    def requeue_waiting_job(self, job_id: str, reward: str | None) -> bool:
        """Queue the job again if it still waits for this reward, or for its files."""
        with self.database.writing() as session:
            job = lock_job(session, job_id)
            waits = job.waiting_reward is not None or job.waiting_reason is not None
            if job.state != "paused" or not waits or job.waiting_reward != reward:
                return False
            clear_waiting(job)
            job.state, job.waiting_resumes = "queued", job.waiting_resumes + 1
            back = f"Reward {reward} is back" if reward else "The job's files can be stored again"
            figures = {"reward": reward} if reward else {}
            record_event(session, job, job_events.JobQueued(reason=f"{back}: waiting for a worker", figures=figures))
            return True


def _lease_expired(lease_s: float) -> ColumnElement[bool]:
    return and_(JobRow.state == "running", _is_over(JobRow.lease_expires, LONGEST_LEASES * lease_s))


def _is_over(until: InstrumentedAttribute[float | None], longest_s: float) -> ColumnElement[bool]:
    """Whether a time has come, or is so far ahead that the clock must have been set back since it was written."""
    return or_(until < now(), until > now() + longest_s)


def lock_claimed_job(session: Session, claim: Claim) -> JobRow:
    """The claimed job, locked, or LeaseLost."""
    claimed = select(JobRow).where(JobRow.id == claim.job_id, JobRow.fence == claim.fence, JobRow.state == "running")
    job = session.scalar(claimed.with_for_update())
    if job is None:
        raise _lease_lost(claim)
    return job


def _lease_lost(claim: Claim) -> LeaseLost:
    return LeaseLost(f"{claim.worker} no longer holds job {claim.job_id} (fence {claim.fence})")


def _grant_lease(session: Session, job: JobRow, worker: str, lease_s: float) -> Claim:
    """The lease and a higher fence."""
    time = database_time(session)
    job.state, job.worker, job.lease_expires, job.fence = "running", worker, time + lease_s, job.fence + 1
    job.started_at = job.started_at or time
    record_event(session, job, job_events.JobStarted(worker=worker, fence=job.fence))
    return Claim(job_id=job.id, fence=job.fence, worker=worker, stored_spec=job.spec, step=job.step)


def _schedule_next_look(session: Session, job: JobRow) -> None:
    pause = REWARD_POLL_DELAYS_S[min(job.waiting_tries, len(REWARD_POLL_DELAYS_S) - 1)]
    job.waiting_tries, job.waiting_until = job.waiting_tries + 1, database_time(session) + pause
