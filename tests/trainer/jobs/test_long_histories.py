"""What pages ask of the database takes as much work however long a job's history is. Counted in SQLite's own steps,
which no other process changes, and not in time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import event, insert

from dipole_trainer.database.engine import Database, upgrade_database
from dipole_trainer.database.tables import CheckpointRow, EventRow, RankedGroupRow, RankingRow
from dipole_trainer.jobs.curves import read_curves
from dipole_trainer.jobs.ranking_ledger import RankingLedger
from dipole_trainer.jobs.store import JobStore
from dipole_trainer.spec import PromptSpec, RewardSpec, TrainSpec

SPEC = TrainSpec(prompts=(PromptSpec(prompt="a red square"),), rewards=(RewardSpec(name="shapes"),), steps=100)
SHORT, LONG = 100, 4000
UNIT = 10  # of SQLite's steps


class CountedDatabase(Database):
    """Counts the steps that SQLite takes."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.steps = 0
        event.listen(self.engine, "connect", lambda connection, _: connection.set_progress_handler(self._count, UNIT))

    def _count(self) -> int:
        self.steps += UNIT
        return 0  # go on


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CountedDatabase]:
    url = f"sqlite:///{tmp_path_factory.mktemp('long') / 'jobs.db'}"
    upgrade_database(url)
    database = CountedDatabase(url)
    yield database
    database.close()


@pytest.fixture(scope="module")
def jobs(database: CountedDatabase) -> tuple[str, str]:
    """A job of few steps and one of many; the first of either's events are an evaluation's."""
    store = JobStore(database)
    short, long = (store.create_job(SPEC).id for _ in range(2))
    for job, steps in ((short, SHORT), (long, LONG)):
        kinds = ["evaluation", *["step"] * steps]
        events = [
            {"job_id": job, "created_at": 1.0, "kind": kind, "level": "info", "message": "", "data": {"step": step}}
            for step, kind in enumerate(kinds)
        ]
        groups = [
            {"job_id": job, "group_id": f"{job}.{step}.0", "step": step, "prompt": "p", "seeds": [], "candidates": [],
             "created_at": 1.0}
            for step in range(steps)
        ]  # fmt: skip
        checkpoints = [
            {"id": f"{job}{step}", "job_id": job, "step": step, "path": "x", "metrics": {}, "created_at": 1.0}
            for step in range(steps)
        ]
        with database.writing() as session:
            for table, rows in ((EventRow, events), (RankedGroupRow, groups), (CheckpointRow, checkpoints)):
                session.execute(insert(table), rows)
    with database.writing() as session:
        answer: dict[str, Any] = dict.fromkeys(("model", "model_revision", "recipe_version"), "1")
        answer |= {"reward": "shapes", "scores": [], "sub_scores": {}, "errors": {}, "seconds": 0.0, "created_at": 1.0}
        session.execute(insert(RankingRow), [{**answer, "group_seq": seq} for seq in range(1, SHORT + LONG + 1)])
    return short, long


ASKED: dict[str, Callable[[CountedDatabase, str], object]] = {
    "the newest figures": lambda database, job: read_curves(database, job, points=1),
    "the newest events": lambda database, job: JobStore(database).list_events(job, limit=50),
    "events to come": lambda database, job: JobStore(database).events_since(job, 10**6),
    "the span of ranked steps": lambda database, job: RankingLedger(database).ranked_steps(job),
    "an old step's groups": lambda database, job: RankingLedger(database).list_groups(job, step=3, limit=8),
    "checkpoints": lambda database, job: JobStore(database).list_checkpoints(job, limit=50),
}


@pytest.mark.parametrize("what", ASKED)
def test_a_longer_history_takes_no_more_work(database: CountedDatabase, jobs: tuple[str, str], what: str) -> None:
    taken = []
    for job in jobs:
        before = database.steps
        assert ASKED[what](database, job) is not None
        taken.append(database.steps - before)
    assert taken[1] < 1.5 * taken[0] + 100, taken


def test_curves_have_a_bounded_number_of_points(database: CountedDatabase, jobs: tuple[str, str]) -> None:
    found = read_curves(database, jobs[1], points=50)
    assert (found.steps.total, len(found.steps.rows)) == (LONG, 51)
