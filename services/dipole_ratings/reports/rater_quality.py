"""What the queue knows of its raters: gold, repeats, agreement; figures for the operator, weights for scores."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from dipole_ratings.aggregation.agreement import is_same_answer, measure_pool_agreement
from dipole_ratings.aggregation.answers import Answer
from dipole_ratings.aggregation.raters import RaterChecks, RaterQuality, rate_raters
from dipole_ratings.database.tables import AnswerRow, RaterRow, SubsetRow, TaskRow
from dipole_ratings.queue.context import QueueContext
from dipole_ratings.queue.settlement import to_answer

WINDOW = 2000  # latest answers that raters are judged by


@dataclass
class _Checks:
    gold: list[bool] = field(default_factory=list)
    repeats: list[bool] = field(default_factory=list)
    dwell: list[tuple[int, float]] = field(default_factory=list)

    def frozen(self) -> RaterChecks:
        return RaterChecks(sum(self.gold), len(self.gold), sum(self.repeats), len(self.repeats), tuple(self.dwell))


@dataclass(frozen=True)
class RaterFigures:
    """A rater as the operator sees one; shares are 0…1, None where nothing was seen yet."""

    rater: str
    name: str | None
    answers: int
    repeats_agreed: float | None
    gold_right: float | None
    weight: float
    paused: bool
    last_seen: float | None
    quality: RaterQuality | None


class RaterJudge:
    def __init__(self, context: QueueContext) -> None:
        self.context = context

    def refresh_weights(self) -> None:
        """Write every rater's weight, by which their answers count from now on."""
        with self.context.database.reading() as session:
            rated = self._rate(session)
            known = dict(session.execute(select(RaterRow.pseudonym, RaterRow.weight)).all())
        changed = {
            rater: quality.weight
            for rater, quality in rated.items()
            if rater in known and abs(known[rater] - quality.weight) > 1e-9
        }
        if changed:
            with self.context.database.writing() as session:
                for rater, weight in sorted(changed.items()):
                    session.execute(update(RaterRow).where(RaterRow.pseudonym == rater).values(weight=weight))

    def list_raters(self) -> list[RaterFigures]:
        """Those who are not forgotten, the first invited first."""
        with self.context.database.reading() as session:
            rated = self._rate(session)
            rows = session.scalars(select(RaterRow).where(RaterRow.deleted_at.is_(None)).order_by(RaterRow.seq)).all()
        found = []
        for row in rows:
            quality = rated.get(row.pseudonym)
            found.append(
                RaterFigures(
                    rater=row.pseudonym,
                    name=row.name,
                    answers=quality.answers if quality else 0,
                    repeats_agreed=quality.repeats_agreed if quality else None,
                    gold_right=quality.gold_right if quality else None,
                    weight=quality.weight if quality else 1.0,
                    paused=row.paused,
                    last_seen=row.last_seen,
                    quality=quality,
                )
            )
        return found

    def measure_agreement(self) -> float | None:
        """Krippendorff's alpha over the latest answers; None where no two raters saw the same."""
        with self.context.database.reading() as session:
            return measure_pool_agreement([*_answers_by_task(_latest_answers(session)).values()])

    def _rate(self, session: Session) -> dict[str, RaterQuality]:
        rows = _latest_answers(session)
        return rate_raters([*_answers_by_task(rows).values()], _check_raters(session, rows))


_Row = tuple[AnswerRow, str, SubsetRow]  # an answer, its rater, what was shown


def _latest_answers(session: Session) -> list[_Row]:
    query = (
        select(AnswerRow, RaterRow.pseudonym, SubsetRow)
        .join(RaterRow, RaterRow.seq == AnswerRow.rater_seq)
        .join(SubsetRow, SubsetRow.seq == AnswerRow.subset_seq)
        .where(AnswerRow.undone_at.is_(None), AnswerRow.verdict != "skip")
        .order_by(AnswerRow.seq.desc())
        .limit(WINDOW)
    )
    return [(row, rater, subset) for row, rater, subset in session.execute(query)][::-1]


def _answers_by_task(rows: Sequence[_Row]) -> dict[int, list[Answer]]:
    found: defaultdict[int, list[Answer]] = defaultdict(list)
    for row, rater, subset in rows:
        if row.purpose == "task":
            found[subset.task_seq].append(to_answer(row, rater))
    return found


def _check_raters(session: Session, rows: Sequence[_Row]) -> dict[str, RaterChecks]:
    first = {(rater, row.subset_seq): to_answer(row, rater) for row, rater, _ in rows if row.purpose == "task"}
    gold = [subset.task_seq for row, _, subset in rows if row.purpose == "gold"]
    scores = dict(session.execute(select(TaskRow.seq, TaskRow.scores).where(TaskRow.seq.in_(gold))).all())
    checks: defaultdict[str, _Checks] = defaultdict(_Checks)
    for row, rater, subset in rows:
        answer, found = to_answer(row, rater), checks[rater]
        if row.dwell_ms is not None:
            found.dwell.append((len(subset.positions), row.dwell_ms / 1000))
        if row.purpose == "repeat" and (before := first.get((rater, row.subset_seq))) is not None:
            found.repeats.append(is_same_answer(before, answer))
        if row.purpose == "gold" and (known := scores.get(subset.task_seq)) is not None:
            found.gold.append(is_same_answer(_order_of_scores(known, answer), answer))
    return {rater: found.frozen() for rater, found in checks.items()}


def _order_of_scores(scores: Sequence[float | None], answer: Answer) -> Answer:
    """The agreed order of the images that an answer ranks."""
    known = {image: score for image in answer.ranked if (score := scores[image]) is not None}
    levels = sorted(set(known.values()), reverse=True)
    return Answer("gold", tuple(tuple(image for image in known if known[image] == level) for level in levels))
