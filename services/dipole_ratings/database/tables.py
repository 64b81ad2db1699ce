"""The tables of the ratings database, the source of truth about who was asked what and said what.

    images ── task_images ─┐
                           tasks ─── subsets ─┬─ leases ── shown_images     who looks at what, how, until when
    job_priorities           │                └─ answers                    append-only; an undone one stays, marked
                         deliveries
    raters ─┬─ invitations                                                  links, as hashes
            └─ sessions                                                     browsers that came by one, as hashes

A task is a request of the ranking protocol; its distinct images are shown whole or in overlapping subsets. Times are
Unix seconds of the database's clock.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Boolean, Float, ForeignKey, Index, LargeBinary, MetaData, UniqueConstraint
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


class RatingsBase(DeclarativeBase):
    metadata = MetaData(naming_convention=NAMING_CONVENTION)


class ImageRow(RatingsBase):
    """Distinct pixels, as a PNG that holds nothing else; `sha256` is of shape and pixels."""

    __tablename__ = "images"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    png: Mapped[bytes] = mapped_column(LargeBinary, deferred=True)
    width: Mapped[int] = mapped_column(Integer)
    height: Mapped[int] = mapped_column(Integer)


class TaskRow(RatingsBase):
    """A group that a trainer wants ordered. Whoever changes it, its leases or its answers holds its row's lock."""

    __tablename__ = "tasks"
    __table_args__ = (
        Index("ix_tasks_state_priority_seq", "state", "priority", "seq"),
        {"sqlite_autoincrement": True},
    )

    seq: Mapped[int] = mapped_column(SerialInteger, primary_key=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    job: Mapped[str] = mapped_column(String(128), index=True)
    priority: Mapped[int] = mapped_column(Integer)
    prompt: Mapped[str] = mapped_column(Text)
    instructions: Mapped[str | None] = mapped_column(Text)
    # The request's candidates: [[id, position of its image], …]; equal images share a position.
    candidates: Mapped[list[list[Any]]] = mapped_column(NullableJson)
    images: Mapped[int] = mapped_column(Integer)
    # Equal for the same prompt, images and instructions, whatever their order.
    content: Mapped[str] = mapped_column(String(64), index=True)
    min_ratings: Mapped[int] = mapped_column(Integer)
    max_ratings: Mapped[int] = mapped_column(Integer)
    # Answers wanted of each subset now: grows from min to max while raters disagree.
    target: Mapped[int] = mapped_column(Integer)
    deadline: Mapped[float] = mapped_column(Float)
    on_timeout: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16))  # pending, completed, failed, cancelled
    # There are answers enough: delivered then, unless one is undone before.
    complete_at: Mapped[float | None] = mapped_column(Float, index=True)
    scores: Mapped[list[float | None] | None] = mapped_column(NullableJson)  # by position
    code: Mapped[str | None] = mapped_column(String(32))  # why there are none, or not all: a word and a sentence
    reason: Mapped[str | None] = mapped_column(Text)
    agreement: Mapped[float | None] = mapped_column(Float)
    ratings: Mapped[int] = mapped_column(Integer, default=0)  # of each subset at least, when it was completed
    reused: Mapped[bool] = mapped_column(Boolean, default=False)  # its scores are another task's
    callback_url: Mapped[str | None] = mapped_column(String(2048))
    idempotency_key: Mapped[str | None] = mapped_column(String(255), unique=True)
    request_digest: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[float] = mapped_column(Float)
    finished_at: Mapped[float | None] = mapped_column(Float, index=True)


class TaskImageRow(RatingsBase):
    """The image at a position of a task."""

    __tablename__ = "task_images"

    task_seq: Mapped[int] = mapped_column(
        SerialInteger, ForeignKey("tasks.seq", ondelete="CASCADE"), primary_key=True, autoincrement=False
    )
    position: Mapped[int] = mapped_column(Integer, primary_key=True)
    sha256: Mapped[str] = mapped_column(ForeignKey("images.sha256"), index=True)


class SubsetRow(RatingsBase):
    """The positions of a task that are shown together."""

    __tablename__ = "subsets"
    __table_args__ = (Index("ix_subsets_task_seq", "task_seq"), {"sqlite_autoincrement": True})

    seq: Mapped[int] = mapped_column(SerialInteger, primary_key=True)
    task_seq: Mapped[int] = mapped_column(ForeignKey("tasks.seq", ondelete="CASCADE"))
    positions: Mapped[list[int]] = mapped_column(NullableJson)


class RaterRow(RatingsBase):
    """Somebody who rates, by a pseudonym. Who asks to be forgotten loses name, links and pseudonym; see raters.py."""

    __tablename__ = "raters"
    __table_args__ = ({"sqlite_autoincrement": True},)

    seq: Mapped[int] = mapped_column(SerialInteger, primary_key=True)
    pseudonym: Mapped[str] = mapped_column(String(64), unique=True)
    name: Mapped[str | None] = mapped_column(String(255))
    paused: Mapped[bool] = mapped_column(Boolean, default=False)
    weight: Mapped[float] = mapped_column(Float, default=1.0)  # of their answers, as rater_quality.py finds it
    created_at: Mapped[float] = mapped_column(Float)
    last_seen: Mapped[float | None] = mapped_column(Float)
    deleted_at: Mapped[float | None] = mapped_column(Float)


class InvitationRow(RatingsBase):
    """A link by which a rater comes, as a SHA-256 of its random text."""

    __tablename__ = "invitations"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    rater_seq: Mapped[int] = mapped_column(ForeignKey("raters.seq", ondelete="CASCADE"), index=True)
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    created_at: Mapped[float] = mapped_column(Float)
    expires_at: Mapped[float | None] = mapped_column(Float)
    revoked_at: Mapped[float | None] = mapped_column(Float)


class SessionRow(RatingsBase):
    """A browser that came by an invitation; it ends with it."""

    __tablename__ = "sessions"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    rater_seq: Mapped[int] = mapped_column(ForeignKey("raters.seq", ondelete="CASCADE"), index=True)
    invitation_id: Mapped[str] = mapped_column(ForeignKey("invitations.id", ondelete="CASCADE"), index=True)
    expires_at: Mapped[float] = mapped_column(Float)


class LeaseRow(RatingsBase):
    """A rater's hold on a subset. `purpose` is task, gold or repeat; only those of tasks take one of the places."""

    __tablename__ = "leases"
    __table_args__ = (
        Index("ix_leases_subset_seq", "subset_seq"),
        Index("ix_leases_rater_seq_ended_at", "rater_seq", "ended_at"),
        {"sqlite_autoincrement": True},
    )

    seq: Mapped[int] = mapped_column(SerialInteger, primary_key=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    subset_seq: Mapped[int] = mapped_column(ForeignKey("subsets.seq", ondelete="CASCADE"))
    rater_seq: Mapped[int] = mapped_column(ForeignKey("raters.seq", ondelete="CASCADE"))
    purpose: Mapped[str] = mapped_column(String(16))
    granted_at: Mapped[float] = mapped_column(Float)
    expires_at: Mapped[float] = mapped_column(Float)
    ended_at: Mapped[float | None] = mapped_column(Float)  # answered or given back; one that lapsed has none


class ShownImageRow(RatingsBase):
    """An image of a lease under the only name that a rater sees: random, and another for every lease."""

    __tablename__ = "shown_images"
    __table_args__ = (UniqueConstraint("lease_seq", "place"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    lease_seq: Mapped[int] = mapped_column(ForeignKey("leases.seq", ondelete="CASCADE"))
    place: Mapped[int] = mapped_column(Integer)  # 0 is A
    position: Mapped[int] = mapped_column(Integer)  # of the task
    sha256: Mapped[str] = mapped_column(ForeignKey("images.sha256"), index=True)


class AnswerRow(RatingsBase):
    """What a rater said. Never changed but for `undone_at`; `counted` is false for surplus, and for skips."""

    __tablename__ = "answers"
    __table_args__ = (
        UniqueConstraint("lease_seq", "revision"),
        Index("ix_answers_subset_seq", "subset_seq"),
        Index("ix_answers_rater_seq_created_at", "rater_seq", "created_at"),
        {"sqlite_autoincrement": True},
    )

    seq: Mapped[int] = mapped_column(SerialInteger, primary_key=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    lease_seq: Mapped[int] = mapped_column(ForeignKey("leases.seq", ondelete="CASCADE"))
    subset_seq: Mapped[int] = mapped_column(ForeignKey("subsets.seq", ondelete="CASCADE"))
    rater_seq: Mapped[int] = mapped_column(ForeignKey("raters.seq", ondelete="CASCADE"))
    purpose: Mapped[str] = mapped_column(String(16))
    verdict: Mapped[str] = mapped_column(String(16))  # tiers, none_usable, skip
    tiers: Mapped[list[list[int]]] = mapped_column(NullableJson)  # positions, the best tier first
    skip_reason: Mapped[str | None] = mapped_column(Text)
    dwell_ms: Mapped[int | None] = mapped_column(BigInteger)
    counted: Mapped[bool] = mapped_column(Boolean)
    revision: Mapped[int] = mapped_column(Integer)  # 1, and one more after every undo
    idempotency_key: Mapped[str | None] = mapped_column(String(255))
    created_at: Mapped[float] = mapped_column(Float)
    undone_at: Mapped[float | None] = mapped_column(Float)


class DeliveryRow(RatingsBase):
    """A callback that is owed: the outbox. Written in the transaction that finished its task."""

    __tablename__ = "deliveries"
    __table_args__ = (Index("ix_deliveries_state_next_at", "state", "next_at"), {"sqlite_autoincrement": True})

    seq: Mapped[int] = mapped_column(SerialInteger, primary_key=True)
    id: Mapped[str] = mapped_column(String(64), unique=True)
    task_seq: Mapped[int] = mapped_column(ForeignKey("tasks.seq", ondelete="CASCADE"), index=True)
    url: Mapped[str] = mapped_column(String(2048))
    state: Mapped[str] = mapped_column(String(16))  # waiting, delivered, given_up
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    next_at: Mapped[float] = mapped_column(Float)
    last_error: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[float] = mapped_column(Float)
    delivered_at: Mapped[float | None] = mapped_column(Float)


class JobPriorityRow(RatingsBase):
    """What an operator says of a job: the higher, the sooner its tasks are shown. 0 where nothing is said."""

    __tablename__ = "job_priorities"

    job: Mapped[str] = mapped_column(String(128), primary_key=True)
    priority: Mapped[int] = mapped_column(Integer)
