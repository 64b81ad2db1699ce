"""A job's figures as curves: what its steps and evaluations reported, thinned to as many points as a chart can show.

Events are the one record of figures. A step that was trained again after a crash has several; the last of them counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import exists, func, select
from sqlalchemy.orm import Session

from dipole.protocol import job_events
from dipole_trainer.database.engine import Database
from dipole_trainer.database.tables import EventRow

MAX_REASONS = 20


@dataclass(frozen=True)
class CurvePoints:
    """Figures in the order of their steps. `every`: one in so many is here, and the newest; `total` there are."""

    total: int
    every: int
    rows: Sequence[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        return {"total": self.total, "every": self.every, "data": self.rows}


@dataclass(frozen=True)
class JobCurves:
    """`cursor` is the id of the newest event that was looked at: a stream goes on after it."""

    cursor: int
    steps: CurvePoints
    evaluations: CurvePoints
    skipped: Sequence[dict[str, Any]]
    failures: Sequence[dict[str, Any]]


def read_curves(database: Database, job_id: str, *, points: int) -> JobCurves:
    """Curves of at most about `points` points each; of one point: the newest figures, found without reading others."""
    with database.reading() as session:
        cursor = session.scalar(select(func.max(EventRow.id)).where(EventRow.job_id == job_id)) or 0
        steps, evaluations = (
            _read_newest(session, job_id, kind) if points == 1 else _read_thinned(session, job_id, kind, points)
            for kind in (job_events.StepFinished.kind, job_events.EvaluationFinished.kind)
        )
        if points == 1:
            return JobCurves(cursor, steps, evaluations, (), ())
        skipped = _count_reasons(session, job_id, job_events.GroupSkipped.kind, "reason")
        failures = _count_reasons(session, job_id, job_events.RewardLeftOut.kind, "reward", "reason")
    return JobCurves(cursor, steps, evaluations, skipped, failures)


def _read_newest(session: Session, job_id: str, kind: str) -> CurvePoints:
    query = select(EventRow).where(EventRow.job_id == job_id, EventRow.kind == kind)
    row = session.scalar(query.order_by(EventRow.id.desc()).limit(1))
    return CurvePoints(0 if row is None else 1, 1, () if row is None else (_to_point(row),))


def _read_thinned(session: Session, job_id: str, kind: str, points: int) -> CurvePoints:
    ids = _last_words(session, job_id, kind)
    every = max(1, -(-len(ids) // points))
    chosen = {*ids[::every], *ids[-1:]}
    rows = session.scalars(select(EventRow).where(EventRow.id.in_(chosen))).all() if chosen else []
    return CurvePoints(len(ids), every, sorted(map(_to_point, rows), key=lambda point: int(point["step"])))


def _last_words(session: Session, job_id: str, kind: str) -> Sequence[int]:
    """Ids of the last event of each step, by step. Only where a run was resumed have events to be asked for theirs."""
    mine = select(EventRow.id).where(EventRow.job_id == job_id, EventRow.kind == kind)
    resumed = exists().where(EventRow.job_id == job_id, EventRow.kind == job_events.RunResumed.kind)
    if not session.scalar(select(resumed)):
        return session.scalars(mine.order_by(EventRow.id)).all()
    step = EventRow.data["step"].as_integer()
    last = select(func.max(EventRow.id)).where(EventRow.job_id == job_id, EventRow.kind == kind)
    return session.scalars(last.group_by(step).order_by(step)).all()


def _to_point(row: EventRow) -> dict[str, Any]:
    """An event's figures; those by category stay in the evaluation's file, which has every score."""
    data = {name: value for name, value in row.data.items() if name != "by_tag"}
    return {**data, "created_at": row.created_at}


def _count_reasons(session: Session, job_id: str, kind: str, *fields: str) -> list[dict[str, Any]]:
    """How often each of `fields`' values stands in events of a kind, the most frequent first."""
    columns = [EventRow.data[name].as_string() for name in fields]
    query = select(func.count(), *columns).where(EventRow.job_id == job_id, EventRow.kind == kind).group_by(*columns)
    rows = session.execute(query.order_by(func.count().desc(), *columns).limit(MAX_REASONS)).all()
    return [{**dict(zip(fields, row[1:], strict=True)), "count": int(row[0])} for row in rows]
