"""The store of jobs: what callers ask of a job. What the worker that holds its lease writes is in leases.py.

    queued ──claim──> running ──finish──> succeeded | failed | cancelled
      ^                │   │
      ├──── release ───┘   │        (a lease that ran out is claimed again, with a higher fence)
      │                    │
      └─ resume ─ paused <─┘        pause was asked for, or a required reward is away, or a disk is full: then it
                                    resumes by itself. A failed job with a checkpoint is resumed likewise

Truth about a job is here, in SQL; all times are the database's. Each method is one transaction.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import and_, exists, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from dipole.database.queries import database_time, page_of_rows, require
from dipole.errors import Conflict, NotFound
from dipole.protocol import job_events
from dipole_trainer.database.engine import Database, now, upgrade_database
from dipole_trainer.database.tables import ACTIVE_STATES, TERMINAL_STATES, CheckpointRow, EventRow, JobRow
from dipole_trainer.jobs.leases import Claim, DesiredState, LeaseStore
from dipole_trainer.jobs.transitions import (
    clear_waiting,
    lock_job,
    lock_open_job,
    record_event,
    request_stop,
    summarize_spec,
)
from dipole_trainer.ranking.weight_changes import MAX_CHANGES, RewardWeights, check_change, read_weight_changes
from dipole_trainer.spec import TrainSpec


def new_job_id() -> str:
    return f"ftjob-{secrets.token_hex(12)}"


class JobStore(LeaseStore):
    """Jobs, their events and checkpoints, over one Database."""

    def create_job(
        self,
        spec: TrainSpec,
        *,
        job_id: str | None = None,
        warnings: Sequence[str] = (),
        training_file: str | None = None,
        validation_file: str | None = None,
        extra: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        digest: str | None = None,
    ) -> JobRow:
        """Queue a job; `warnings` are events of it. The same `idempotency_key` and `digest` return the first,
        another digest is a Conflict.
        """
        job = JobRow(
            id=job_id or new_job_id(),
            state="queued",
            desired="run",
            model=spec.model,
            spec=spec.model_dump_json(),
            summary={**summarize_spec(spec), **(extra or {})},
            training_file=training_file,
            validation_file=validation_file,
            step=0,
            steps=spec.steps,
            idempotency_key=idempotency_key,
            request_digest=digest,
        )
        try:
            with self.database.writing() as session:
                job.created_at = database_time(session)
                session.add(job)
                session.flush()
                record_event(session, job, _describe_creation(spec))
                for said in warnings:
                    record_event(session, job, job_events.JobWarned(warning=said))
                record_event(session, job, job_events.JobQueued(reason="Waiting for a worker"))
        except IntegrityError:
            if idempotency_key is None:
                raise
            return self.job_of_key(idempotency_key, digest)
        return job

    def job_of_key(self, idempotency_key: str, digest: str | None) -> JobRow:
        """The job that a create with this key made. Raises NotFound, or Conflict when the request was another."""
        with self.database.reading() as session:
            job = session.scalar(select(JobRow).where(JobRow.idempotency_key == idempotency_key))
        if job is None:
            raise NotFound("no job was created with this Idempotency-Key")
        if job.request_digest != digest:
            raise Conflict("this Idempotency-Key was used for a different request: send a new key with a new request")
        return job

    def get_job(self, job_id: str) -> JobRow:
        with self.database.reading() as session:
            return require(session.scalar(select(JobRow).where(JobRow.id == job_id)), job_id)

    def load_spec(self, job_id: str) -> TrainSpec:
        """Raises InvalidInput when another version wrote what this one cannot read."""
        with self.database.reading() as session:
            text = session.scalar(select(JobRow.spec).where(JobRow.id == job_id))
        return TrainSpec.from_stored(require(text, job_id))

    def list_jobs(self, *, after: str | None = None, limit: int = 20) -> tuple[Sequence[JobRow], bool]:
        """Newest first, and whether there are more. `after` is the id of the last job already seen."""
        query = select(JobRow).order_by(JobRow.seq.desc()).limit(limit + 1)
        with self.database.reading() as session:
            if after is not None:
                query = query.where(
                    JobRow.seq < require(session.scalar(select(JobRow.seq).where(JobRow.id == after)), after, "after")
                )
            return page_of_rows(session.scalars(query).all(), limit)

    def pause_job(self, job_id: str) -> JobRow:
        """Stop at the next step with a checkpoint, or at once when nobody trains it."""
        with self.database.writing() as session:
            job = lock_open_job(session, job_id, "paused")
            if job.state == "paused":
                clear_waiting(job)
            elif job.desired == "cancel":
                raise Conflict(f"job {job_id} is being cancelled")
            elif job.desired != "pause":
                request_stop(session, job, "pause")
        return job

    def pause_open_jobs(self) -> None:
        """Every job that has not ended, but those that are being cancelled."""
        with self.database.reading() as session:
            ids = session.scalars(
                select(JobRow.id).where(JobRow.state.in_(ACTIVE_STATES), JobRow.desired == "run")
            ).all()
        for job_id in ids:
            self.pause_job(job_id)

    def resume_job(self, job_id: str) -> JobRow:
        """Queue a paused job again, or a failed one that has a checkpoint to go on from."""
        with self.database.writing() as session:
            job = lock_job(session, job_id)
            if job.state == "failed":
                self._reopen_failed_job(session, job)
            job = lock_open_job(session, job_id, "resumed")
            if job.desired == "cancel":
                raise Conflict(f"job {job_id} is being cancelled")
            job.desired = "run"
            if job.state == "paused":
                clear_waiting(job)
                job.state, job.waiting_tries, job.waiting_resumes = "queued", 0, 0
                record_event(session, job, job_events.JobQueued(reason="Resumed: waiting for a worker"))
        return job

    def _reopen_failed_job(self, session: Session, job: JobRow) -> None:
        """As if it had paused at its last checkpoint. Raises Conflict where it has none."""
        if not session.scalar(select(exists().where(CheckpointRow.job_id == job.id))):
            raise Conflict(f"job {job.id} has failed without a checkpoint to go on from: create it anew")
        job.state, job.desired, job.error, job.finished_at, job.crashes = "paused", "run", None, None, 0

    def cancel_job(self, job_id: str) -> JobRow:
        with self.database.writing() as session:
            job = lock_job(session, job_id)
            if job.state == "cancelled":
                return job
            job = lock_open_job(session, job_id, "cancelled")
            if job.desired != "cancel":
                request_stop(session, job, "cancel")
        return job

    def change_weights(self, job_id: str, asked: RewardWeights) -> JobRow:
        """Have a job's rewards weigh otherwise from its next step on. Raises Conflict when it has ended, has no step
        left, or has been changed too often, and InvalidInput for what it cannot be trained with.
        """
        spec = self.load_spec(job_id)
        with self.database.writing() as session:
            job = lock_open_job(session, job_id, "changed")
            if job.desired == "cancel":
                raise Conflict(f"job {job_id} is being cancelled")
            if job.step >= job.steps:
                raise Conflict(f"job {job_id} has trained all its {job.steps} steps: no other begins with new weights")
            changes = read_weight_changes(job.weight_changes)
            if (change := check_change(spec, changes, asked)) is not None:
                if len(changes) >= MAX_CHANGES:
                    raise Conflict(f"the weights of job {job_id} were changed {MAX_CHANGES} times, which is the most")
                job.weight_changes = [each.model_dump(mode="json") for each in [*changes, change]]
        return job

    # ---- reports of jobs that nobody held when they ended ----------------------------------------------------------

    def list_ended_jobs(self, *, within_s: float) -> Sequence[tuple[str, float]]:
        """(id, when) of jobs that were cancelled or failed in the last `within_s` seconds, the oldest job first."""
        ended = and_(JobRow.state.in_(("cancelled", "failed")), JobRow.finished_at > now() - within_s)
        with self.database.reading() as session:
            rows = session.execute(select(JobRow.id, JobRow.finished_at).where(ended).order_by(JobRow.seq))
            return [(job_id, finished_at) for job_id, finished_at in rows if finished_at is not None]

    def lacks_report(self, job_id: str) -> bool:
        """Whether a job has been evaluated or drawn, and its newest report does not say how it ended."""
        shown = (job_events.EvaluationFinished.kind, job_events.SamplesWritten.kind)
        with self.database.reading() as session:
            state = session.scalar(select(JobRow.state).where(JobRow.id == job_id))
            is_shown = session.scalar(select(exists().where(EventRow.job_id == job_id, EventRow.kind.in_(shown))))
            return bool(is_shown) and _reported_status(session, job_id) != state

    def record_late_report(self, job_id: str, event: job_events.ReportWritten) -> None:
        """Tell of a report that was written after the job had ended, once."""
        with self.database.writing() as session:
            job = lock_job(session, job_id)
            if job.state == event.status and _reported_status(session, job_id) != event.status:
                record_event(session, job, event)

    def list_events(self, job_id: str, *, after: int | None = None, limit: int = 20) -> tuple[Sequence[EventRow], bool]:
        """Newest first; `after` is the id of the last event already seen."""
        query = select(EventRow).where(EventRow.job_id == job_id).order_by(EventRow.id.desc()).limit(limit + 1)
        if after is not None:
            query = query.where(EventRow.id < after)
        with self.database.reading() as session:
            return page_of_rows(session.scalars(query).all(), limit)

    def events_since(self, job_id: str, cursor: int, *, limit: int = 500) -> Sequence[EventRow]:
        """What happened after `cursor`, oldest first."""
        query = (
            select(EventRow).where(EventRow.job_id == job_id, EventRow.id > cursor).order_by(EventRow.id).limit(limit)
        )
        with self.database.reading() as session:
            return session.scalars(query).all()

    def list_checkpoints(
        self, job_id: str, *, after: str | None = None, limit: int = 20
    ) -> tuple[Sequence[CheckpointRow], bool]:
        """Newest first; `after` is the id of the last checkpoint already seen."""
        query = select(CheckpointRow).where(CheckpointRow.job_id == job_id).order_by(CheckpointRow.step.desc())
        with self.database.reading() as session:
            if after is not None:
                seen = select(CheckpointRow.step).where(CheckpointRow.id == after, CheckpointRow.job_id == job_id)
                query = query.where(CheckpointRow.step < require(session.scalar(seen), after, "after"))
            return page_of_rows(session.scalars(query.limit(limit + 1)).all(), limit)

    def get_checkpoint(self, job_id: str, checkpoint_id: str) -> CheckpointRow:
        query = select(CheckpointRow).where(CheckpointRow.id == checkpoint_id, CheckpointRow.job_id == job_id)
        with self.database.reading() as session:
            return require(session.scalar(query), checkpoint_id, "checkpoint")


def _reported_status(session: Session, job_id: str) -> str | None:
    """How the job had ended by its newest report; None where there is none."""
    query = select(EventRow.data).where(EventRow.job_id == job_id, EventRow.kind == job_events.ReportWritten.kind)
    told = session.scalar(query.order_by(EventRow.id.desc()).limit(1))
    return None if told is None else str(told.get("status"))


def _describe_creation(spec: TrainSpec) -> job_events.JobEvent:
    """`steps` as they were given, or why they are as many."""
    prompts = len(spec.prompts)
    if "steps" in spec.model_fields_set:
        return job_events.JobCreated(steps=spec.steps, prompts=prompts)
    draws = spec.steps * spec.prompts_per_step / max(prompts, 1)
    return job_events.JobCreatedForDefaultSteps(steps=spec.steps, prompts=prompts, draws=draws)


__all__ = ["ACTIVE_STATES", "TERMINAL_STATES", "Claim", "Database", "DesiredState", "JobStore", "upgrade_database"]
