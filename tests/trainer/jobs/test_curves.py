"""A job's curves: the last word on each step counts, and however many there are, few points come."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dipole_trainer.database.engine import Database, upgrade_database
from dipole_trainer.jobs.curves import read_curves
from dipole_trainer.jobs.leases import Claim
from dipole_trainer.jobs.store import JobStore
from dipole_trainer.spec import PromptSpec, RewardSpec, TrainSpec

SPEC = TrainSpec(prompts=(PromptSpec(prompt="a red square"),), rewards=(RewardSpec(name="shapes"),), steps=100)


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[JobStore]:
    url = f"sqlite:///{tmp_path}/jobs.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    upgrade_database(str(url))
    database = Database(str(url))
    yield JobStore(database)
    database.close()


@pytest.fixture
def claim(store: JobStore) -> Claim:
    store.create_job(SPEC)
    claim = store.claim_job("worker", 600)
    assert claim is not None
    return claim


def report_steps(store: JobStore, claim: Claim, steps: range, *, loss: float) -> None:
    for step in steps:
        store.append_event(claim, "step", {"step": step, "steps": 100, "loss": loss, "rewards": {"shapes": 0.5}})


def test_a_step_that_was_trained_again_is_there_once_as_it_was_last(store: JobStore, claim: Claim) -> None:
    report_steps(store, claim, range(1, 7), loss=1.0)
    store.append_event(claim, "resumed", {"step": 3})
    report_steps(store, claim, range(4, 9), loss=2.0)
    found = read_curves(store.database, claim.job_id, points=100).steps
    assert [point["step"] for point in found.rows] == list(range(1, 9))
    assert [point["loss"] for point in found.rows] == [1.0] * 3 + [2.0] * 5
    assert (found.total, found.every) == (8, 1)


def test_many_steps_are_thinned_evenly_and_the_newest_stays(store: JobStore, claim: Claim) -> None:
    report_steps(store, claim, range(1, 96), loss=1.0)
    found = read_curves(store.database, claim.job_id, points=10).steps
    assert (found.total, found.every) == (95, 10)
    assert [point["step"] for point in found.rows] == [1, 11, 21, 31, 41, 51, 61, 71, 81, 91, 95]


def test_of_one_point_the_newest_figures_come(store: JobStore, claim: Claim) -> None:
    store.append_event(claim, "evaluation", {"step": 0, "path": "evaluation/step-0.json", "scores": {}})
    report_steps(store, claim, range(1, 4), loss=1.0)
    found = read_curves(store.database, claim.job_id, points=1)
    assert [point["step"] for point in found.steps.rows] == [3]
    assert [point["step"] for point in found.evaluations.rows] == [0]


def test_a_job_without_figures_has_empty_curves(store: JobStore, claim: Claim) -> None:
    for points in (1, 100):
        found = read_curves(store.database, claim.job_id, points=points)
        assert not found.steps.rows
        assert not found.evaluations.rows
        assert found.cursor > 0  # of the events that say how it began


def test_reasons_are_counted_and_categories_stay_in_their_file(store: JobStore, claim: Claim) -> None:
    for index, reason in enumerate(["no spread", "no spread", "too few scores"]):
        store.append_event(claim, "skipped_group", {"step": 0, "group": f"g{index}", "reason": reason})
    store.append_event(claim, "reward_failure", {"step": 0, "reward": "shapes", "group": "g", "reason": "timeout"})
    evaluation = {"step": 0, "path": "evaluation/step-0.json", "scores": {}, "by_tag": {"colors": {"shapes": {}}}}
    store.append_event(claim, "evaluation", evaluation)
    found = read_curves(store.database, claim.job_id, points=100)
    assert found.skipped == [{"reason": "no spread", "count": 2}, {"reason": "too few scores", "count": 1}]
    assert found.failures == [{"reward": "shapes", "reason": "timeout", "count": 1}]
    assert "by_tag" not in found.evaluations.rows[0]


def test_following_after_the_cursor_misses_nothing(store: JobStore, claim: Claim) -> None:
    """What is in the curves and what comes after their cursor is each event once."""
    report_steps(store, claim, range(1, 4), loss=1.0)
    found = read_curves(store.database, claim.job_id, points=100)
    report_steps(store, claim, range(4, 6), loss=1.0)
    later = [event.data["step"] for event in store.events_since(claim.job_id, found.cursor)]
    assert [point["step"] for point in found.steps.rows] + later == [1, 2, 3, 4, 5]
