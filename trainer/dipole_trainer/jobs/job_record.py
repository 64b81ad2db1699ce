"""What the database has of a job for its report: when it ran, what it was warned of, which rewards answered it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import func, select

from dipole.database.queries import database_time, require
from dipole.protocol import job_events
from dipole_trainer.database.engine import Database
from dipole_trainer.database.tables import EventRow, FileRow, JobRow, RankedGroupRow, RankingRow
from dipole_trainer.ranking.weight_changes import WeightChange, read_weight_changes

EndedStatus = Literal["succeeded", "cancelled", "failed"]
MAX_WARNINGS = 30  # different ones, that are told


@dataclass(frozen=True)
class JobWarning:
    """A warning, as often as it was given; `message` is the sentence of the newest."""

    kind: str
    message: str
    count: int


@dataclass(frozen=True, order=True)
class AnsweringReward:
    """Who answered under a reward's name. An endpoint that was replaced meanwhile gives several."""

    reward: str
    model: str
    revision: str
    recipe: str


@dataclass(frozen=True)
class JobRecord:
    """`files` has the names under which uploads came, by the field that names them. Times are Unix seconds."""

    job_id: str
    summary: Mapping[str, Any]
    files: Mapping[str, tuple[str, str]]  # (id, name)
    created_at: float
    started_at: float | None
    written_at: float
    warnings: Sequence[JobWarning]
    more_warnings: int
    answers: Sequence[AnsweringReward]
    best: Mapping[str, Any] | None  # `step`, `score` and `value` of the best evaluation
    weight_changes: Sequence[WeightChange] = ()


def read_job_record(database: Database, job_id: str) -> JobRecord:
    with database.reading() as session:
        job = require(session.scalar(select(JobRow).where(JobRow.id == job_id)), job_id)
        named = {"training_file": job.training_file, "validation_file": job.validation_file}
        known = {
            row.id: row.filename
            for row in session.scalars(select(FileRow).where(FileRow.id.in_([each for each in named.values() if each])))
        }
        # a sentence names neither step nor group, so that the same is one
        count, newest = func.count(), func.max(EventRow.id)
        query = select(EventRow.kind, EventRow.message, count).where(
            EventRow.job_id == job_id, EventRow.level != "info"
        )
        rows = session.execute(query.group_by(EventRow.kind, EventRow.message).order_by(newest.desc())).all()
        answered = (
            select(RankingRow.reward, RankingRow.model, RankingRow.model_revision, RankingRow.recipe_version)
            .join(RankedGroupRow, RankedGroupRow.seq == RankingRow.group_seq)
            .where(RankedGroupRow.job_id == job_id, RankingRow.failure.is_(None))
            .distinct()
        )
        answers = sorted(AnsweringReward(*row) for row in session.execute(answered))
        found_best = select(EventRow.data).where(
            EventRow.job_id == job_id, EventRow.kind == job_events.BestStepFound.kind
        )
        best = session.scalar(found_best.order_by(EventRow.id.desc()).limit(1))
        time = database_time(session)
    warnings = fold_warnings([JobWarning(*row) for row in rows])
    return JobRecord(
        job_id=job_id,
        summary=job.summary,
        files={field: (file, known.get(file, "")) for field, file in named.items() if file},
        created_at=job.created_at,
        started_at=job.started_at,
        written_at=time,
        warnings=warnings[:MAX_WARNINGS],
        more_warnings=max(0, len(warnings) - MAX_WARNINGS),
        answers=answers,
        best=best,
        weight_changes=read_weight_changes(job.weight_changes),
    )


def fold_warnings(found: Sequence[JobWarning]) -> list[JobWarning]:
    """Warnings of the newest first. Of reward hacking, whose figures change at every evaluation, the newest stands for
    all; what ended the job is told apart from them.
    """
    kept: dict[tuple[str, str], JobWarning] = {}
    for each in found:
        if each.kind == job_events.JobFailed.kind:
            continue
        key = (each.kind, "" if each.kind == job_events.RewardHackingFound.kind else each.message)
        before = kept.get(key)
        kept[key] = each if before is None else JobWarning(before.kind, before.message, before.count + each.count)
    return sorted(kept.values(), key=lambda each: each.kind != job_events.RewardHackingFound.kind)
