"""The tables of the jobs database. The database is the source of truth about a job; a queue's message is only a
wake-up.

    files ─┐
           ├─ jobs ─┬─ events        what happened, in order; the id is the cursor of pages and of the event stream
    rewards┘        ├─ checkpoints
                    ├─ webhooks      what is owed to whoever wants to hear of a job's end: an outbox
                    └─ ranked_groups ── rankings     the ledger: who ranked what, how, at which revision
    api_keys  workers  audit  cached_scores

Times are Unix seconds by the database's clock (engine.now), so that machines with wrong clocks agree on leases.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Float, ForeignKey, Index, MetaData, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from dipole.database.column_types import (
    NAMING_CONVENTION,
    BigInteger,
    Integer,
    NullableJson,
    SerialInteger,
    String,
    Text,
)

ACTIVE_STATES = ("validating_files", "queued", "running", "paused")
TERMINAL_STATES = ("succeeded", "failed", "cancelled")


class Base(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING_CONVENTION)


class FileRow(Base):
    """An uploaded file, checked line by line before it is accepted; its bytes are an artifact, JSON lines of `kind`."""

    __tablename__ = "files"
    __table_args__ = ({"sqlite_autoincrement": True},)

    seq: Mapped[int] = mapped_column(SerialInteger, primary_key=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    filename: Mapped[str] = mapped_column(String(255))
    purpose: Mapped[str] = mapped_column(String(32))
    bytes: Mapped[int] = mapped_column(BigInteger)
    lines: Mapped[int] = mapped_column(Integer)
    sha256: Mapped[str] = mapped_column(String(64))
    kind: Mapped[str] = mapped_column(String(16))  # prompts, or pairs of images
    created_at: Mapped[float] = mapped_column(Float)
    expires_at: Mapped[float | None] = mapped_column(Float)


class JobRow(Base):
    """A training job. `state` is what is, `desired` what was asked for; `fence` grows with every claim."""

    __tablename__ = "jobs"
    __table_args__ = (Index("ix_jobs_state_lease", "state", "lease_expires"), {"sqlite_autoincrement": True})

    seq: Mapped[int] = mapped_column(SerialInteger, primary_key=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    state: Mapped[str] = mapped_column(String(32))
    desired: Mapped[str] = mapped_column(String(16))
    model: Mapped[str] = mapped_column(String(512))
    # The whole TrainSpec with its prompts: a job outlives the files it was made from. Large, so loaded on demand.
    spec: Mapped[str] = mapped_column(Text, deferred=True)
    # The same without prompts, and the caller's own fields: what the API shows.
    summary: Mapped[dict[str, Any]] = mapped_column(NullableJson)
    # Weights that were changed since, in order: `weights` by reward, and the `step` that they count from.
    weight_changes: Mapped[list[dict[str, Any]] | None] = mapped_column(NullableJson)
    training_file: Mapped[str | None] = mapped_column(String(64))
    validation_file: Mapped[str | None] = mapped_column(String(64))
    error: Mapped[dict[str, Any] | None] = mapped_column(NullableJson)
    step: Mapped[int] = mapped_column(Integer, default=0)
    steps: Mapped[int] = mapped_column(Integer)
    eta_s: Mapped[float | None] = mapped_column(Float)
    created_at: Mapped[float] = mapped_column(Float)
    started_at: Mapped[float | None] = mapped_column(Float)
    finished_at: Mapped[float | None] = mapped_column(Float)
    # The lease: who trains it, until when, under which fencing number.
    worker: Mapped[str | None] = mapped_column(String(255))
    lease_expires: Mapped[float | None] = mapped_column(Float)
    fence: Mapped[int] = mapped_column(BigInteger, default=0)
    crashes: Mapped[int] = mapped_column(Integer, default=0)
    # Paused for a reward: which, why, polls since the last step, resumes without a step, and when to poll next.
    waiting_reward: Mapped[str | None] = mapped_column(String(64))
    waiting_reason: Mapped[str | None] = mapped_column(Text)
    waiting_tries: Mapped[int] = mapped_column(Integer, default=0)
    waiting_resumes: Mapped[int] = mapped_column(Integer, default=0)
    waiting_until: Mapped[float | None] = mapped_column(Float)
    # A repeated create with the same key returns the first job; the digest tells a repeat from a mistake.
    idempotency_key: Mapped[str | None] = mapped_column(String(255), unique=True)
    request_digest: Mapped[str | None] = mapped_column(String(64))


class EventRow(Base):
    """Something that happened to a job. Written under the job's row lock, so ids of one job commit in order."""

    __tablename__ = "events"
    __table_args__ = (
        Index("ix_events_job_id_id", "job_id", "id"),
        Index("ix_events_job_id_kind_id", "job_id", "kind", "id"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(SerialInteger, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    created_at: Mapped[float] = mapped_column(Float)
    kind: Mapped[str] = mapped_column(String(32))
    level: Mapped[str] = mapped_column(String(8))
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any]] = mapped_column(NullableJson)


class CheckpointRow(Base):
    """A saved state of a job; `path` is relative to the job's artifacts."""

    __tablename__ = "checkpoints"
    __table_args__ = (UniqueConstraint("job_id", "step"), {"sqlite_autoincrement": True})

    seq: Mapped[int] = mapped_column(SerialInteger, primary_key=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    step: Mapped[int] = mapped_column(Integer)
    path: Mapped[str] = mapped_column(String(1024))
    metrics: Mapped[dict[str, Any]] = mapped_column(NullableJson)
    created_at: Mapped[float] = mapped_column(Float)


class RewardRow(Base):
    """A registered endpoint. `key` is sent to it and never shown again."""

    __tablename__ = "rewards"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    url: Mapped[str] = mapped_column(String(2048))
    kind: Mapped[str] = mapped_column(String(32), default="dipole")
    options: Mapped[dict[str, Any]] = mapped_column(NullableJson, default=dict)
    key: Mapped[str | None] = mapped_column(Text)
    tls: Mapped[str | None] = mapped_column(String(64))
    description: Mapped[str] = mapped_column(Text, default="")
    created_at: Mapped[float] = mapped_column(Float)


class ApiKeyRow(Base):
    """A caller's key, as a SHA-256 of its random text, and what it may do."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(255))
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[list[str]] = mapped_column(NullableJson)
    created_at: Mapped[float] = mapped_column(Float)
    revoked_at: Mapped[float | None] = mapped_column(Float)


class WebhookRow(Base):
    """A webhook that is owed. Written in the transaction that ended its job."""

    __tablename__ = "webhooks"
    __table_args__ = (Index("ix_webhooks_state_next_at", "state", "next_at"), {"sqlite_autoincrement": True})

    seq: Mapped[int] = mapped_column(SerialInteger, primary_key=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), index=True)
    ending: Mapped[str] = mapped_column(String(32))  # the job's state when it ended
    url: Mapped[str] = mapped_column(String(2048))
    state: Mapped[str] = mapped_column(String(16))  # waiting, delivered, given_up
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    next_at: Mapped[float] = mapped_column(Float)
    created_at: Mapped[float] = mapped_column(Float)


class RankedGroupRow(Base):
    """The ledger's left half: K candidates of one prompt. Seeds redraw them, hashes prove it."""

    __tablename__ = "ranked_groups"
    __table_args__ = (
        UniqueConstraint("job_id", "group_id"),
        Index("ix_ranked_groups_job_id_step_seq", "job_id", "step", "seq"),
        {"sqlite_autoincrement": True},
    )

    seq: Mapped[int] = mapped_column(SerialInteger, primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"))
    group_id: Mapped[str] = mapped_column(String(255))
    step: Mapped[int] = mapped_column(Integer)
    prompt: Mapped[str] = mapped_column(Text)
    prompt_metadata: Mapped[dict[str, Any] | None] = mapped_column(NullableJson)
    seeds: Mapped[list[int]] = mapped_column(NullableJson)
    candidates: Mapped[list[str]] = mapped_column(NullableJson)
    created_at: Mapped[float] = mapped_column(Float)


class RankingRow(Base):
    """The ledger's right half: one reward's scores for one group, and which revision of the reward gave them."""

    __tablename__ = "rankings"

    group_seq: Mapped[int] = mapped_column(
        SerialInteger, ForeignKey("ranked_groups.seq", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    reward: Mapped[str] = mapped_column(String(64), primary_key=True)
    scores: Mapped[list[float | None]] = mapped_column(NullableJson)
    sub_scores: Mapped[dict[str, list[float | None]]] = mapped_column(NullableJson)
    errors: Mapped[dict[str, str]] = mapped_column(NullableJson)
    failure: Mapped[str | None] = mapped_column(Text)
    model: Mapped[str] = mapped_column(String(255))
    model_revision: Mapped[str] = mapped_column(String(255))
    recipe_version: Mapped[str] = mapped_column(String(255))
    seconds: Mapped[float] = mapped_column(Float)
    created_at: Mapped[float] = mapped_column(Float)


class AuditRow(Base):
    """A request that would change something: who asked, for what, and what was answered. It has no foreign key: what
    was done stays written when a job or a key is gone.
    """

    __tablename__ = "audit"
    __table_args__ = (
        Index("ix_audit_created_at", "created_at"),
        Index("ix_audit_job_id_seq", "job_id", "seq"),
        {"sqlite_autoincrement": True},
    )

    seq: Mapped[int] = mapped_column(SerialInteger, primary_key=True)
    created_at: Mapped[float] = mapped_column(Float)
    caller: Mapped[str] = mapped_column(String(64))
    caller_name: Mapped[str] = mapped_column(String(255))
    method: Mapped[str] = mapped_column(String(16))
    path: Mapped[str] = mapped_column(String(1024))
    job_id: Mapped[str | None] = mapped_column(String(64))
    request_id: Mapped[str] = mapped_column(String(128))
    status: Mapped[int] = mapped_column(Integer)


class CachedScoresRow(Base):
    """A deterministic reward's answer for a group, for whoever asks the same of it again (jobs/score_store.py)."""

    __tablename__ = "cached_scores"
    __table_args__ = (Index("ix_cached_scores_created_at", "created_at"), {"sqlite_autoincrement": True})

    seq: Mapped[int] = mapped_column(SerialInteger, primary_key=True)
    key: Mapped[str] = mapped_column(String(64), unique=True)
    answer: Mapped[dict[str, Any]] = mapped_column(NullableJson)
    created_at: Mapped[float] = mapped_column(Float)


class WorkerRow(Base):
    """A worker that lives until `expires_at` unless it says so again, and what it can load (weights/inventory.py) and
    report to."""

    __tablename__ = "workers"

    name: Mapped[str] = mapped_column(String(255), primary_key=True)
    models: Mapped[dict[str, str]] = mapped_column(NullableJson)
    features: Mapped[dict[str, list[str]]] = mapped_column(NullableJson)
    decoders: Mapped[list[str] | None] = mapped_column(NullableJson)  # None: of a worker that does not say
    devices: Mapped[list[dict[str, Any]]] = mapped_column(NullableJson)
    trackers: Mapped[list[str] | None] = mapped_column(NullableJson)  # None: of a worker that does not say
    version: Mapped[str | None] = mapped_column(String(64))  # Dipole's; None as well
    started_at: Mapped[float] = mapped_column(Float)
    seen_at: Mapped[float] = mapped_column(Float)
    expires_at: Mapped[float] = mapped_column(Float)
