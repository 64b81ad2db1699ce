"""Changes of weights in the store: which step they get, once, and when there are none. On SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dipole.errors import Conflict, LeaseLost
from dipole_trainer.database.engine import Database, upgrade_database
from dipole_trainer.database.tables import JobRow
from dipole_trainer.jobs import store as jobs_store
from dipole_trainer.jobs.leases import Claim
from dipole_trainer.jobs.store import JobStore
from dipole_trainer.ranking.weight_changes import RewardWeights
from dipole_trainer.spec import PromptSpec, RewardSpec, TrainSpec

SPEC = TrainSpec(
    prompts=(PromptSpec(prompt="a red square"),),
    rewards=(RewardSpec(name="shapes"), RewardSpec(name="colour", weight=0)),
    steps=9,
)


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[JobStore]:
    url = f"sqlite:///{tmp_path}/jobs.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    upgrade_database(url)
    database = Database(url)
    yield JobStore(database)
    database.close()


def claimed(store: JobStore) -> tuple[JobRow, Claim]:
    job = store.create_job(SPEC)
    claim = store.claim_job("worker", 60, job_id=job.id)
    assert claim is not None
    return job, claim


def weigh(**weights: float) -> RewardWeights:
    return RewardWeights(weights=weights)


def test_a_change_gets_the_step_that_begins_and_keeps_it(store: JobStore) -> None:
    """The event says what was before. Who asks again, for an earlier step too, gets the same."""
    job, claim = claimed(store)
    assert store.take_weight_changes(claim, 0) == []
    store.change_weights(job.id, weigh(shapes=0.5, colour=0))
    store.change_weights(job.id, weigh(colour=-1))
    (first, second) = store.take_weight_changes(claim, 4)
    assert (first.weights, first.step, second.weights, second.step) == ({"shapes": 0.5}, 4, {"colour": -1}, 4)
    assert store.take_weight_changes(claim, 2) == [first, second]
    store.change_weights(job.id, weigh(shapes=2))
    # a run that goes on from step 2: the changes keep their order
    assert [each.step for each in store.take_weight_changes(claim, 2)] == [4, 4, 4]
    told = [event for event in store.events_since(job.id, 0) if event.kind == "weights_changed"]
    assert [event.data for event in told] == [
        {"step": 4, "weights": {"shapes": {"old": 1.0, "new": 0.5}}},
        {"step": 4, "weights": {"colour": {"old": 0.0, "new": -1.0}}},
        {"step": 4, "weights": {"shapes": {"old": 0.5, "new": 2.0}}},
    ]
    assert told[1].message == "Weights changed after step 4: colour 0 → -1"


def test_no_step_begins_with_what_comes_after_the_last(store: JobStore) -> None:
    """What was asked for during it is told when the job ends, before the last event; after it nothing can be asked."""
    job, claim = claimed(store)
    store.change_weights(job.id, weigh(shapes=2, colour=1))
    store.change_weights(job.id, weigh(shapes=3, colour=0))
    assert [each.step for each in store.take_weight_changes(claim, SPEC.steps)] == [None, None]
    store.append_event(claim, "step", {"step": SPEC.steps, "steps": SPEC.steps, "loss": 0.0})
    with pytest.raises(Conflict, match="has trained all its 9 steps"):
        store.change_weights(job.id, weigh(shapes=4))
    store.finish_job(claim, "succeeded")
    told, last = list(store.events_since(job.id, 0))[-2:]
    assert (told.kind, told.level) == ("weights_not_changed", "warn")
    assert told.data == {"weights": {"shapes": 3}}, "colour is as it was"
    assert told.message.endswith("asked for last (shapes 3): the job has ended")
    assert last.kind == "succeeded"


def test_a_failed_job_may_begin_a_step_with_what_was_asked_for_once_it_is_resumed(store: JobStore) -> None:
    job, claim = claimed(store)
    store.change_weights(job.id, weigh(shapes=2))
    store.finish_job(claim, "failed", error={"message": "a test"})
    assert "weights_not_changed" not in {event.kind for event in store.events_since(job.id, 0)}


def test_whoever_lost_the_lease_gives_no_step(store: JobStore) -> None:
    job, claim = claimed(store)
    store.release_job(claim, "test")
    store.change_weights(job.id, weigh(shapes=2))
    with pytest.raises(LeaseLost):
        store.take_weight_changes(claim, 1)


def test_a_job_that_has_ended_or_was_changed_too_often_is_not(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    job, claim = claimed(store)
    monkeypatch.setattr(jobs_store, "MAX_CHANGES", 1)
    store.change_weights(job.id, weigh(shapes=2))
    with pytest.raises(Conflict, match="1 times, which is the most"):
        store.change_weights(job.id, weigh(shapes=3))
    store.cancel_job(job.id)
    with pytest.raises(Conflict, match="being cancelled"):
        store.change_weights(job.id, weigh(shapes=3))
    store.finish_job(claim, "cancelled")
    with pytest.raises(Conflict, match="has cancelled and cannot be changed"):
        store.change_weights(job.id, weigh(shapes=3))
