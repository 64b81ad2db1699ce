"""Answers: kept for good, counted while a place is left, and undone until their task is delivered."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from dipole.errors import Conflict, Gone, InvalidInput, NotFound
from dipole_ratings.database.tables import AnswerRow, LeaseRow, ShownImageRow, SubsetRow, TaskRow
from dipole_ratings.queue.context import QueueContext
from dipole_ratings.queue.leases import (
    LABELS,
    RatingLeases,
    TakenLease,
    end_leases,
    find_lease,
    lock_rater,
    lock_working_rater,
)
from dipole_ratings.queue.settlement import count_places, lower_target, settle_task


@dataclass(frozen=True)
class GivenAnswer:
    """What a rater sends, in labels: tiers and the unranked rest, or a reason to skip, or that none is usable."""

    tiers: Sequence[Sequence[str]] = ()
    unranked: Sequence[str] = ()
    skip: str | None = None
    none_usable: bool = False
    dwell_ms: int | None = None

    @property
    def verdict(self) -> str:
        return "skip" if self.skip is not None else "none_usable" if self.none_usable else "tiers"


@dataclass(frozen=True)
class KeptAnswer:
    """`counted` is false for surplus. Of gold and repeats, which a rater must not know, it is true."""

    id: str
    counted: bool


class RatingAnswers:
    def __init__(self, context: QueueContext, leases: RatingLeases) -> None:
        self.context, self.leases = context, leases

    def submit_answer(
        self, rater_seq: int, lease_id: str, given: GivenAnswer, idempotency_key: str | None
    ) -> KeptAnswer:
        """Keep an answer, once. Raises NotFound, InvalidInput that names a label, Gone for a lease that was given back,
        or Conflict for one that has another answer.
        """
        with self.context.database.writing() as session:
            lock_rater(session, rater_seq)
            lease = find_lease(session, rater_seq, lease_id)
            task = _lock_task_of(session, lease.subset_seq)
            if (kept := _find_kept(session, lease, idempotency_key)) is not None:
                return kept
            _refuse_ended(session, lease)
            tiers = _place_labels(session, lease, given)
            time = self.context.clock(session)
            is_task = lease.purpose == "task"
            has_place = is_task and given.skip is None and self._has_place(session, task, lease, time)
            answer = AnswerRow(
                id=f"answer_{secrets.token_hex(16)}", lease_seq=lease.seq, subset_seq=lease.subset_seq,
                rater_seq=rater_seq, purpose=lease.purpose, verdict=given.verdict, tiers=tiers, skip_reason=given.skip,
                dwell_ms=given.dwell_ms, counted=has_place, revision=1 + _count_revisions(session, lease),
                idempotency_key=idempotency_key, created_at=time,
            )  # fmt: skip
            session.add(answer)
            lease.ended_at = time
            if is_task:
                _end_twins(session, lease, time)
            session.flush()
            if has_place:
                settle_task(self.context, session, task, time)
            return KeptAnswer(answer.id, _looks_counted(answer))

    def undo_answer(self, rater_seq: int, answer_id: str) -> TakenLease:
        """Take an answer back: its lease is live again, and the rater's only one.

        Raises NotFound, Forbidden for a rater who is paused, or Conflict when it was undone, or its task was delivered
        or ended.
        """
        with self.context.database.writing() as session:
            lock_working_rater(session, rater_seq)
            query = select(AnswerRow).where(AnswerRow.id == answer_id, AnswerRow.rater_seq == rater_seq)
            answer = session.scalar(query)
            if answer is None:
                raise NotFound("there is no such answer")
            task = _lock_task_of(session, answer.subset_seq)
            lease = session.scalars(select(LeaseRow).where(LeaseRow.seq == answer.lease_seq)).one()
            time = self.context.clock(session)
            if answer.undone_at is not None:
                if lease.ended_at is None and lease.expires_at > time:
                    return self.leases.describe_lease(session, lease, time, is_new=False)
                raise Conflict("this answer was undone already")
            if lease.purpose == "task" and _was_delivered(self.context, session, task):
                raise Conflict("this answer was delivered already: it can be undone no more")
            answer.undone_at = time
            end_leases(session, rater_seq, time)
            lease.ended_at, lease.granted_at = None, time
            lease.expires_at = time + self.context.settings.ratings_lease_s
            if not answer.counted and lease.purpose == "task":
                # surplus or skipped: it may be looked at again, and takes a place only if there is one
                session.flush()
                if count_places(session, lease.subset_seq, time, but_rater=rater_seq) >= task.target:
                    raise Conflict("others have taken the place of this answer: it can be undone no more")
            session.flush()
            if lease.purpose == "task":
                lower_target(session, task, time)
                settle_task(self.context, session, task, time)
            return self.leases.describe_lease(session, lease, time, is_new=False)

    def _has_place(self, session: Session, task: TaskRow, lease: LeaseRow, time: float) -> bool:
        """Whether the answer counts: its own lease holds a place, or another is free; one answer of a rater counts."""
        if task.state != "pending" or task.deadline <= time:
            return False
        other = select(AnswerRow.seq).where(
            AnswerRow.subset_seq == lease.subset_seq, AnswerRow.rater_seq == lease.rater_seq,
            AnswerRow.counted.is_(True), AnswerRow.purpose == "task", AnswerRow.undone_at.is_(None),
        )  # fmt: skip
        if session.scalar(other.limit(1)) is not None:
            return False
        return count_places(session, lease.subset_seq, time, but_rater=lease.rater_seq) < task.target


def _lock_task_of(session: Session, subset_seq: int) -> TaskRow:
    seq = select(SubsetRow.task_seq).where(SubsetRow.seq == subset_seq).scalar_subquery()
    return session.scalars(select(TaskRow).where(TaskRow.seq == seq).with_for_update()).one()


def _find_kept(session: Session, lease: LeaseRow, key: str | None) -> KeptAnswer | None:
    """The answer that came under this key."""
    if key is None:
        return None
    found = session.scalar(select(AnswerRow).where(AnswerRow.lease_seq == lease.seq, AnswerRow.idempotency_key == key))
    return None if found is None else KeptAnswer(found.id, _looks_counted(found))


def _refuse_ended(session: Session, lease: LeaseRow) -> None:
    """A lease that only lapsed still takes an answer."""
    if lease.ended_at is None:
        return
    query = select(AnswerRow.seq).where(AnswerRow.lease_seq == lease.seq, AnswerRow.undone_at.is_(None))
    if session.scalar(query.limit(1)) is not None:
        raise Conflict("this task has your answer already: undo it to give another")
    raise Gone("this task was given back: take another")


def _place_labels(session: Session, lease: LeaseRow, given: GivenAnswer) -> list[list[int]]:
    """Positions of the task, in tiers. Every label stands in exactly one tier or in unranked."""
    rows = session.execute(
        select(ShownImageRow.place, ShownImageRow.position).where(ShownImageRow.lease_seq == lease.seq)
    )
    positions = {LABELS[place]: position for place, position in rows}
    if given.verdict != "tiers":
        return []
    placed = [
        (label, f"tiers[{number}][{index}]")
        for number, tier in enumerate(given.tiers)
        for index, label in enumerate(tier)
    ]
    placed += [(label, f"unranked[{index}]") for index, label in enumerate(given.unranked)]
    seen: set[str] = set()
    for label, field in placed:
        if label not in positions:
            raise InvalidInput(f"{field}: there is no image {label!r} in this task", field=field)
        if label in seen:
            raise InvalidInput(f"{field}: image {label} stands in two places, give it one", field=field)
        seen.add(label)
    if missing := sorted(positions.keys() - seen):
        raise InvalidInput(f"tiers: image {missing[0]} is in no tier and not in unranked", field="tiers")
    tiers = [[positions[label] for label in tier] for tier in given.tiers if tier]
    if not tiers:
        raise InvalidInput("tiers: place an image at least, or skip, or say that none is usable", field="tiers")
    return tiers


def _count_revisions(session: Session, lease: LeaseRow) -> int:
    return len(session.scalars(select(AnswerRow.seq).where(AnswerRow.lease_seq == lease.seq)).all())


def _end_twins(session: Session, lease: LeaseRow, time: float) -> None:
    """A late answer ends the newer lease that the rater has on the same images."""
    query = select(LeaseRow).where(
        LeaseRow.subset_seq == lease.subset_seq, LeaseRow.rater_seq == lease.rater_seq, LeaseRow.ended_at.is_(None)
    )
    for twin in session.scalars(query):
        twin.ended_at = time


def _was_delivered(context: QueueContext, session: Session, task: TaskRow) -> bool:
    time = context.clock(session)
    return task.state != "pending" or task.deadline <= time or (task.complete_at or time + 1) <= time


def _looks_counted(answer: AnswerRow) -> bool:
    return answer.counted or answer.purpose != "task" or answer.verdict == "skip"
