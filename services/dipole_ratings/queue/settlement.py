"""From answers to the end of a task: whether there are enough, whether another rater is asked, and what the scores are.

| answers of each subset         | then                                                                         |
|--------------------------------|------------------------------------------------------------------------------|
| fewer than the target          | the task waits                                                               |
| as many, and they settle it    | delivered after `ratings_undo_s`, in which the last may be undone            |
| as many, and they do not       | the target grows by one, up to max_ratings; then delivered, null with reason |

All of it under the task's row lock.
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from sqlalchemy import ColumnElement, and_, func, select
from sqlalchemy.orm import Session

from dipole_ratings.aggregation.answers import Answer
from dipole_ratings.aggregation.scores import Unclear, aggregate
from dipole_ratings.database.tables import AnswerRow, DeliveryRow, LeaseRow, RaterRow, SubsetRow, TaskRow
from dipole_ratings.queue.context import QueueContext


def is_counted() -> ColumnElement[bool]:
    return and_(AnswerRow.purpose == "task", AnswerRow.counted.is_(True), AnswerRow.undone_at.is_(None))


def is_live(time: float) -> ColumnElement[bool]:
    """Of a lease that takes one of a task's places."""
    return and_(LeaseRow.purpose == "task", LeaseRow.ended_at.is_(None), LeaseRow.expires_at > time)


def count_places(session: Session, subset_seq: int, time: float, *, but_rater: int | None = None) -> int:
    """Places of a subset that are taken: live leases, but one rater's, and answers that count."""
    leases = select(func.count()).where(LeaseRow.subset_seq == subset_seq, is_live(time))
    if but_rater is not None:
        leases = leases.where(LeaseRow.rater_seq != but_rater)
    answers = select(func.count()).where(AnswerRow.subset_seq == subset_seq, is_counted())
    return (session.scalar(leases) or 0) + (session.scalar(answers) or 0)


def settle_task(context: QueueContext, session: Session, task: TaskRow, time: float) -> None:
    """After an answer was given or undone: wait, ask another rater, or be delivered soon."""
    counts = _count_answers(session, task)
    task.complete_at = None
    while min(counts) >= task.target:
        outcome = aggregate(*_aggregation_input(session, task))
        if not outcome.needs_another_rater or task.target >= task.max_ratings:
            task.complete_at = time + context.settings.ratings_undo_s
            return
        task.target += 1


def lower_target(session: Session, task: TaskRow, time: float) -> None:
    """After an undo: ask for no more than at first, unless somebody is at it."""
    subsets = session.scalars(select(SubsetRow.seq).where(SubsetRow.task_seq == task.seq)).all()
    task.target = max(task.min_ratings, *(count_places(session, subset, time) for subset in subsets))


def score_task(session: Session, task: TaskRow, *, unclear: Unclear) -> None:
    """Write scores, or why there are none; nobody else is asked."""
    outcome = aggregate(*_aggregation_input(session, task), unclear=unclear)
    task.scores = None if outcome.scores is None else list(outcome.scores)
    task.code, task.reason, task.agreement = outcome.code, outcome.reason, outcome.agreement
    task.ratings = min(_count_answers(session, task))


def end_task(
    session: Session, task: TaskRow, state: Literal["completed", "failed"], time: float, *, call_back: bool = True
) -> None:
    """The end, and the callback that is owed for it, in one transaction."""
    task.state, task.finished_at, task.complete_at = state, time, None
    if call_back and task.callback_url is not None:
        delivery = DeliveryRow(
            id=f"delivery_{secrets.token_hex(8)}", task_seq=task.seq, url=task.callback_url, state="waiting",
            attempts=0, next_at=time, created_at=time,
        )  # fmt: skip
        session.add(delivery)


def to_answer(row: AnswerRow, rater: str) -> Answer:
    """An answer as aggregation takes it."""
    return Answer(rater, tuple(map(tuple, row.tiers)), none_usable=row.verdict == "none_usable")


def _count_answers(session: Session, task: TaskRow) -> list[int]:
    """Answers that count of each subset of a task."""
    subsets = session.scalars(select(SubsetRow.seq).where(SubsetRow.task_seq == task.seq)).all()
    found = Counter(
        session.scalars(select(AnswerRow.subset_seq).where(AnswerRow.subset_seq.in_(subsets), is_counted()))
    )
    return [found[subset] for subset in subsets]


def _aggregation_input(session: Session, task: TaskRow) -> tuple[Sequence[Answer], int, dict[str, float]]:
    query = (
        select(AnswerRow, RaterRow.pseudonym, RaterRow.weight)
        .join(SubsetRow, SubsetRow.seq == AnswerRow.subset_seq)
        .join(RaterRow, RaterRow.seq == AnswerRow.rater_seq)
        .where(SubsetRow.task_seq == task.seq, is_counted())
        .order_by(AnswerRow.seq)
    )
    found = session.execute(query).all()
    return (
        [to_answer(row, rater) for row, rater, _ in found],
        task.images,
        {rater: weight for _, rater, weight in found},
    )
