"""Whatever raters do in whatever order, and whenever: nobody does surplus work, nobody hoards, nothing is lost."""

from __future__ import annotations

import contextlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dipole.errors import Conflict, Gone
from dipole.protocol.schemas import Ranking
from dipole_ratings.api.dependencies import RatingParts
from dipole_ratings.database.tables import AnswerRow, LeaseRow, RatingsBase, SubsetRow, TaskRow
from dipole_ratings.queue.answers import GivenAnswer
from dipole_ratings.queue.leases import TakenLease

from .conftest import HandClock, MakeQueue
from .test_queue import hire, in_order, request, rows

RATERS, TASKS = 3, 2
RATER = st.integers(0, RATERS - 1)
STEPS = st.one_of(
    st.tuples(st.sampled_from(["take", "answer", "reverse", "again", "skip", "none", "release", "undo"]), RATER),
    st.tuples(st.just("wait"), st.sampled_from([1.0, 11.0, 400.0, 601.0])),
)


class Floor:
    """Raters at work; what each holds by its own belief, which may be long out of date."""

    def __init__(self, parts: RatingParts, clock: HandClock) -> None:
        self.parts, self.clock = parts, clock
        self.raters = hire(parts, RATERS)
        self.ids = [
            parts.tasks.submit_task(request((10, 20, 30), f"p{n}", min_ratings=1 + n, max_ratings=2 + n)).id
            for n in range(TASKS)
        ]
        self.leases: dict[int, TakenLease] = {}
        self.receipts: dict[int, list[str]] = {rater: [] for rater in range(RATERS)}
        self.submitted: set[str] = set()
        self.number = 0

    def run(self, step: tuple[str, Any]) -> None:
        what, who = step
        if what == "wait":
            self.clock.time += who
            self.parts.tasks.close_due_tasks()
            return
        with contextlib.suppress(Conflict, Gone):
            self.act(what, who, self.raters[who])

    def act(self, what: str, who: int, rater: int) -> None:
        if what == "take":
            lease = self.parts.leases.take_lease(rater)
            if lease is not None:
                self.leases[who] = lease
        elif what == "undo":
            if self.receipts[who]:
                self.leases[who] = self.parts.answers.undo_answer(rater, self.receipts[who][-1])
        elif who in self.leases:
            self.hand_in(what, who, rater, self.leases[who])

    def hand_in(self, what: str, who: int, rater: int, lease: TakenLease) -> None:
        if what == "release":
            return self.parts.leases.release_lease(rater, lease.id)
        given = {"skip": GivenAnswer(skip="x"), "none": GivenAnswer(none_usable=True)}.get(what)
        given = given or in_order(self.parts, lease, reverse=what == "reverse")
        self.number += what != "again"
        kept = self.parts.answers.submit_answer(rater, lease.id, given, f"key-{self.number}")
        self.receipts[who].append(kept.id)
        self.submitted.add(kept.id)

    def check(self) -> None:
        with self.parts.database.reading() as session:
            subsets = session.execute(
                sa.select(SubsetRow.seq, TaskRow).join(TaskRow, TaskRow.seq == SubsetRow.task_seq)
            ).all()
            answers = session.scalars(sa.select(AnswerRow)).all()
            live = session.scalars(
                sa.select(LeaseRow).where(LeaseRow.ended_at.is_(None), LeaseRow.expires_at > self.clock.time)
            ).all()
        assert {answer.id for answer in answers} == self.submitted, "answers are kept for good, and once"
        assert max(Counter(lease.rater_seq for lease in live).values(), default=0) <= 1, "nobody hoards"
        counted = [answer for answer in answers if answer.counted and answer.undone_at is None]
        by_rater = Counter((answer.subset_seq, answer.rater_seq) for answer in counted)
        assert max(by_rater.values(), default=0) <= 1, "one rater's answer counts once"
        for subset, task in subsets:
            given = sum(answer.subset_seq == subset for answer in counted)
            held = sum(lease.subset_seq == subset for lease in live)
            assert task.min_ratings <= task.target <= task.max_ratings
            if task.state == "pending":
                assert given + held <= task.target, "nobody does surplus work"
            else:
                assert given >= task.min_ratings, "nothing is delivered too soon"


@pytest.fixture
def queue(make_queue: MakeQueue, tmp_path: Path) -> tuple[RatingParts, HandClock]:
    """One for all stories: each begins by emptying it."""
    return make_queue(f"sqlite:///{tmp_path}/ratings.db", ratings_undo_s=10)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, min_size=5, max_size=30))
def test_places_are_never_given_twice(queue: tuple[RatingParts, HandClock], steps: list[tuple[str, Any]]) -> None:
    """After every step of any story of three raters: live leases and answers together are no more than the target."""
    parts, clock = queue
    with parts.database.writing() as session:
        for table in reversed(RatingsBase.metadata.sorted_tables):
            session.execute(sa.delete(table))
    floor = Floor(parts, clock)
    for step in steps:
        floor.run(step)
        floor.check()


def test_raters_at_once_are_given_exactly_what_is_asked_for(make_queue: MakeQueue, ratings_url: str) -> None:
    """Six raters in threads over two replicas' connections: no place twice, no surplus, every task with its answers."""
    replicas = [make_queue(ratings_url)[0] for _ in range(2)]
    groups = [request((10, 20, 30), f"p{number}", min_ratings=3, max_ratings=3) for number in range(6)]
    ids = [replicas[number % 2].tasks.submit_task(each).id for number, each in enumerate(groups)]
    raters = hire(replicas[0], 6)

    def work(number: int) -> None:
        parts = replicas[number % 2]
        while parts.statistics.count_tasks().get("pending"):
            lease = parts.leases.take_lease(raters[number])
            if lease is None:
                parts.tasks.close_due_tasks()
            else:
                given = in_order(parts, lease)
                assert parts.answers.submit_answer(raters[number], lease.id, given, lease.id).counted

    with ThreadPoolExecutor(len(raters)) as pool:
        list(pool.map(work, range(len(raters))))
    assert all(isinstance(replicas[1].tasks.get_ranking(each), Ranking) for each in ids)
    answers, leases = rows(replicas[0], AnswerRow), rows(replicas[0], LeaseRow)
    assert Counter(answer.subset_seq for answer in answers) == dict.fromkeys(range(1, 7), 3)
    assert len({(answer.subset_seq, answer.rater_seq) for answer in answers}) == len(leases) == 18
