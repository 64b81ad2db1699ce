"""The queue in figures: what waits, what is looked at, how fast, for whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Select, and_, case, func, select, update

from dipole_ratings.database.tables import AnswerRow, JobPriorityRow, LeaseRow, TaskRow
from dipole_ratings.queue.context import QueueContext

HOUR_S = 3600.0
LISTED_JOBS = 100


@dataclass(frozen=True)
class JobFigures:
    job: str
    pending: int
    completed: int
    oldest_s: float | None
    priority: int


@dataclass(frozen=True)
class QueueFigures:
    """`pending` and `oldest_s` are of tasks, `leased` and `answered` of what raters are shown."""

    pending: int
    leased: int
    answered: int
    oldest_s: float | None
    ratings_per_hour: int
    by_job: Sequence[JobFigures]


class RatingStatistics:
    def __init__(self, context: QueueContext) -> None:
        self.context = context

    def measure_queue(self) -> QueueFigures:
        given = and_(AnswerRow.undone_at.is_(None), AnswerRow.verdict != "skip")
        with self.context.database.reading() as session:
            time = self.context.clock(session)
            pending, oldest = session.execute(
                select(func.count(), func.min(TaskRow.created_at)).where(TaskRow.state == "pending")
            ).one()
            live = and_(LeaseRow.ended_at.is_(None), LeaseRow.expires_at > time)
            leased = session.scalar(select(func.count()).select_from(LeaseRow).where(live)) or 0
            answered = session.scalar(select(func.count()).select_from(AnswerRow).where(given)) or 0
            lately = select(func.count()).select_from(AnswerRow).where(given, AnswerRow.created_at > time - HOUR_S)
            return QueueFigures(
                pending=pending,
                leased=leased,
                answered=answered,
                oldest_s=None if oldest is None else time - oldest,
                ratings_per_hour=session.scalar(lately) or 0,
                by_job=[
                    JobFigures(job, waiting, done, None if first is None else time - first, priority or 0)
                    for job, waiting, done, first, priority in session.execute(_jobs_query())
                ],
            )

    def count_tasks(self) -> dict[str, int]:
        """By state."""
        with self.context.database.reading() as session:
            found = session.execute(select(TaskRow.state, func.count()).group_by(TaskRow.state))
            return dict(found.all())

    def set_job_priority(self, job: str, priority: int) -> None:
        """Of a job's tasks, those that wait and those to come. It takes the place of what the tasks said themselves."""
        with self.context.database.writing() as session:
            session.merge(JobPriorityRow(job=job, priority=priority))
            session.execute(
                update(TaskRow).where(TaskRow.job == job, TaskRow.state == "pending").values(priority=priority)
            )


def _jobs_query() -> Select[str, int, int, float | None, int | None]:
    waits = case((TaskRow.state == "pending", TaskRow.created_at))
    return (
        select(
            TaskRow.job,
            func.count(waits),
            func.count(case((TaskRow.state == "completed", 1))),
            func.min(waits),
            func.max(JobPriorityRow.priority),
        )
        .outerjoin(JobPriorityRow, JobPriorityRow.job == TaskRow.job)
        .group_by(TaskRow.job)
        .order_by(func.count(waits).desc(), func.max(TaskRow.seq).desc())
        .limit(LISTED_JOBS)
    )
