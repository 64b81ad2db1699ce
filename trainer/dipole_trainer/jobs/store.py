"""The store of jobs: what callers ask of a job. What the worker that holds its lease writes is in leases.py.

    queued ──claim──> running ──finish──> succeeded | failed | cancelled
      ^                │   │
      ├──── release ───┘   │        (a lease that ran out is claimed again, with a higher fence)
      │                    │
      └─ resume ─ paused <─┘        pause was asked for, or a required reward is away: then it resumes by itself

Truth about a job is here, in SQL; all times are the database's. Each method is one transaction.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from dipole.errors import Conflict, NotFound
from dipole_trainer.database.engine import Database, upgrade
from dipole_trainer.database.queries import found, page, time_of
from dipole_trainer.database.tables import ACTIVE, TERMINAL, Checkpoint, Event, Job
from dipole_trainer.jobs.leases import Claim, Desired, Leases
from dipole_trainer.jobs.transitions import ask, locked, open_job, record, stop_waiting, summary_of
from dipole_trainer.spec import TrainSpec


class JobStore(Leases):
    """Jobs, their events and checkpoints, over one Database."""

    def create(
        self,
        spec: TrainSpec,
        *,
        training_file: str | None = None,
        validation_file: str | None = None,
        extra: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        digest: str | None = None,
    ) -> Job:
        """Queue a job. The same `idempotency_key` and `digest` return the first job, another digest is a Conflict."""
        job = Job(
            id=f"ftjob-{secrets.token_hex(12)}",
            state="queued",
            desired="run",
            model=spec.model,
            spec=spec.model_dump_json(),
            summary={**summary_of(spec), **(extra or {})},
            training_file=training_file,
            validation_file=validation_file,
            step=0,
            steps=spec.steps,
            idempotency_key=idempotency_key,
            request_digest=digest,
        )
        try:
            with self.database.writing() as session:
                job.created_at = time_of(session)
                session.add(job)
                session.flush()
                record(session, job, "created", f"Job created: {spec.steps} steps on {len(spec.prompts)} prompts")
                record(session, job, "queued", "Waiting for a worker")
        except IntegrityError:
            if idempotency_key is None:
                raise
            return self.repeated(idempotency_key, digest)
        return job

    def repeated(self, idempotency_key: str, digest: str | None) -> Job:
        """The job that a create with this key made. Raises NotFound, or Conflict when the request was another."""
        with self.database.reading() as session:
            job = session.scalar(select(Job).where(Job.idempotency_key == idempotency_key))
        if job is None:
            raise NotFound("no job was created with this Idempotency-Key")
        if job.request_digest != digest:
            raise Conflict("this Idempotency-Key was used for a different request: send a new key with a new request")
        return job

    def get(self, job_id: str) -> Job:
        with self.database.reading() as session:
            return found(session.scalar(select(Job).where(Job.id == job_id)), job_id)

    def spec(self, job_id: str) -> TrainSpec:
        """Raises InvalidInput when another version wrote what this one cannot read."""
        with self.database.reading() as session:
            text = session.scalar(select(Job.spec).where(Job.id == job_id))
        return TrainSpec.stored(found(text, job_id))

    def list(self, *, after: str | None = None, limit: int = 20) -> tuple[Sequence[Job], bool]:
        """Newest first, and whether there are more. `after` is the id of the last job already seen."""
        query = select(Job).order_by(Job.seq.desc()).limit(limit + 1)
        with self.database.reading() as session:
            if after is not None:
                query = query.where(
                    Job.seq < found(session.scalar(select(Job.seq).where(Job.id == after)), after, "after")
                )
            return page(session.scalars(query).all(), limit)

    def pause(self, job_id: str) -> Job:
        """Stop at the next step with a checkpoint, or at once when nobody trains it."""
        with self.database.writing() as session:
            job = open_job(session, job_id, "paused")
            if job.state == "paused":
                stop_waiting(job)
            elif job.desired == "cancel":
                raise Conflict(f"job {job_id} is being cancelled")
            elif job.desired != "pause":
                ask(session, job, "pause", "Pause asked for: stops at the next step")
        return job

    def resume(self, job_id: str) -> Job:
        with self.database.writing() as session:
            job = open_job(session, job_id, "resumed")
            if job.desired == "cancel":
                raise Conflict(f"job {job_id} is being cancelled")
            job.desired = "run"
            if job.state == "paused":
                stop_waiting(job)
                job.state, job.waiting_tries, job.waiting_resumes = "queued", 0, 0
                record(session, job, "queued", "Resumed: waiting for a worker")
        return job

    def cancel(self, job_id: str) -> Job:
        with self.database.writing() as session:
            job = locked(session, job_id)
            if job.state == "cancelled":
                return job
            job = open_job(session, job_id, "cancelled")
            if job.desired != "cancel":
                ask(session, job, "cancel", "Cancel asked for: stops at the next step")
        return job

    def events(self, job_id: str, *, after: int | None = None, limit: int = 20) -> tuple[Sequence[Event], bool]:
        """Newest first; `after` is the id of the last event already seen."""
        query = select(Event).where(Event.job_id == job_id).order_by(Event.id.desc()).limit(limit + 1)
        if after is not None:
            query = query.where(Event.id < after)
        with self.database.reading() as session:
            return page(session.scalars(query).all(), limit)

    def events_since(self, job_id: str, cursor: int, *, limit: int = 500) -> Sequence[Event]:
        """What happened after `cursor`, oldest first."""
        query = select(Event).where(Event.job_id == job_id, Event.id > cursor).order_by(Event.id).limit(limit)
        with self.database.reading() as session:
            return session.scalars(query).all()

    def checkpoints(
        self, job_id: str, *, after: str | None = None, limit: int = 20
    ) -> tuple[Sequence[Checkpoint], bool]:
        """Newest first; `after` is the id of the last checkpoint already seen."""
        query = select(Checkpoint).where(Checkpoint.job_id == job_id).order_by(Checkpoint.step.desc())
        with self.database.reading() as session:
            if after is not None:
                seen = select(Checkpoint.step).where(Checkpoint.id == after, Checkpoint.job_id == job_id)
                query = query.where(Checkpoint.step < found(session.scalar(seen), after, "after"))
            return page(session.scalars(query.limit(limit + 1)).all(), limit)

    def checkpoint(self, job_id: str, checkpoint_id: str) -> Checkpoint:
        query = select(Checkpoint).where(Checkpoint.id == checkpoint_id, Checkpoint.job_id == job_id)
        with self.database.reading() as session:
            return found(session.scalar(query), checkpoint_id, "checkpoint")


__all__ = ["ACTIVE", "TERMINAL", "Claim", "Database", "Desired", "JobStore", "upgrade"]
