"""The score cache, through CeleryRanker and a rank worker: who is asked again, and whole jobs with it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from dipole.client.endpoint import Endpoint as Described
from dipole.settings import PlatformSettings
from dipole_trainer.database.engine import Database, upgrade_database
from dipole_trainer.database.tables import CachedScoresRow
from dipole_trainer.jobs import score_store
from dipole_trainer.jobs.ranking_ledger import RankingLedger
from dipole_trainer.jobs.score_store import SqlScoreStore
from dipole_trainer.jobs.store import JobStore
from dipole_trainer.ranking.groups import RewardResult
from dipole_trainer.ranking.score_cache import SavedRankings, ScoreCache
from dipole_trainer.registry.rewards import RewardRegistry
from dipole_trainer.spec import TrainSpec
from dipole_trainer.training import session
from dipole_trainer.worker.worker import Worker

from .ranking_harness import Answer, Call, Endpoint, Endpoints, Harness, K, collect, good, group, ranking, reward

pytestmark = pytest.mark.usefixtures("rank_worker")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path}/jobs.db"
    upgrade_database(url)
    made = Database(url)
    yield made
    made.close()


@pytest.fixture
def rank(database: Database, harness: Harness) -> Callable[..., RewardResult]:
    """Ranks a group in a job of its own, with what is kept in the database; the numbers of groups that were saved."""
    jobs = 0

    def rank_once(asked: Endpoint, name: str = "net", most: int = 100, **group_changes: Any) -> RewardResult:
        nonlocal jobs
        jobs += 1
        cache = ScoreCache(SqlScoreStore(database, most))
        ranker = harness.ranker(reward(asked, name, required=False), job=f"{asked.url} {jobs}", score_cache=cache)
        ranker.submit(replace(group("g"), **group_changes))
        (ranked,) = collect(ranker)
        rank_once.saved = cache.take_saved()  # type: ignore[attr-defined]
        return ranked.results[name]

    return rank_once


def rows(database: Database) -> int:
    with database.reading() as session:
        return session.scalar(sa.select(sa.func.count()).select_from(CachedScoresRow)) or 0


def test_a_deterministic_reward_is_asked_once_for_equal_groups_of_two_jobs(
    endpoint: Endpoints, rank: Callable[..., RewardResult]
) -> None:
    """The second job's answer is the first's, with its parts and names; what was saved is counted."""
    asked = endpoint(deterministic=True, verified=False)
    first, second = rank(asked), rank(asked)
    assert len(asked.calls) == 1
    assert replace(second, seconds=first.seconds) == first
    assert (second.sub_scores, second.model_revision, second.verified) == ({"half": (0.5,) * K}, "r1", False)
    saved: dict[str, SavedRankings] = rank.saved  # type: ignore[attr-defined]
    assert (saved["net"].groups, saved["net"].seconds) == (1, pytest.approx(first.seconds))


@pytest.mark.parametrize("said", [None, False])
def test_a_reward_that_draws_lots_or_does_not_say_is_always_asked(
    endpoint: Endpoints, rank: Callable[..., RewardResult], database: Database, said: bool | None
) -> None:
    """People, sampled judges, and servers that know nothing of the field."""
    asked = endpoint(deterministic=said)
    rank(asked), rank(asked)
    assert (len(asked.calls), rows(database)) == (2, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "another"},
        {"metadata": {"tag": "colors"}},
        {"metadata": None},
        {"images": group("g", value=8).images},
    ],
    ids=["prompt", "metadata", "no metadata", "images"],
)
def test_what_differs_in_anything_that_is_asked_is_asked(
    endpoint: Endpoints, rank: Callable[..., RewardResult], change: dict[str, Any]
) -> None:
    """The prompt, its metadata and every pixel are in the key; the group's id and step are not."""
    asked = endpoint(deterministic=True)
    rank(asked), rank(asked, **change)
    assert len(asked.calls) == 2
    rank(asked, id="other", step=7, **change)
    assert len(asked.calls) == 2


def test_another_revision_is_asked_again_also_in_the_middle_of_a_run(
    endpoint: Endpoints, harness: Harness, database: Database
) -> None:
    """What is known of the old one is not taken for the new one's; going back finds it again."""
    asked = endpoint(deterministic=True)
    asked.behave = lambda call: (200, {}, ranking(call, revision=asked.revision))
    cache = ScoreCache(SqlScoreStore(database, 100))
    ranker = harness.ranker(reward(asked, "net"), job="revisions", score_cache=cache)

    def revision_of(name: str) -> str:
        ranker.submit(group(name))
        return collect(ranker)[0].results["net"].model_revision

    assert revision_of("a") == "r1"
    asked.revision = "r2"
    assert revision_of("b") == "r2"  # an answer tells it
    for (name, revision), calls in zip([("a", "r2"), ("b", "r2"), ("a", "r2")], [3, 3, 3], strict=True):
        other = harness.ranker(reward(asked, "net"), job=f"{name} {calls} {revision}", score_cache=cache)
        other.submit(group(name))
        assert collect(other)[0].results["net"].model_revision == revision
        assert len(asked.calls) == calls
    asked.revision = "r1"
    back = harness.ranker(reward(asked, "net"), job="back", score_cache=ScoreCache(SqlScoreStore(database, 100)))
    back.submit(group("a"))
    assert collect(back)[0].results["net"].model_revision == "r1"
    assert len(asked.calls) == 3


def test_a_failure_is_never_kept(endpoint: Endpoints, rank: Callable[..., RewardResult], database: Database) -> None:
    """Neither a refusal nor an answer of which one image has no score; the next job asks, and may do better."""
    answers: list[Callable[[Call], Answer]] = [
        lambda call: (400, {}, '{"title": "no"}'),
        lambda call: (200, {}, ranking(call, [1.0, None, 2.0, 3.0])),
        lambda call: (200, {}, ranking(call)),
    ]
    asked = endpoint(lambda call: answers[min(call.number, 2)](call), deterministic=True)
    assert rank(asked).failure is not None
    assert rank(asked).scores == (1.0, None, 2.0, 3.0)
    assert rows(database) == 0
    assert rank(asked).scores == (0.0, 1.0, 2.0, 3.0)
    assert rows(database) == 1
    assert rank(asked).scores == (0.0, 1.0, 2.0, 3.0)
    assert len(asked.calls) == 3


def test_another_endpoint_that_says_the_same_of_itself_is_asked(
    endpoint: Endpoints, rank: Callable[..., RewardResult]
) -> None:
    """Two servers of one revision by name need not be one: "1" is everybody's first."""
    one, two = endpoint(deterministic=True), endpoint(deterministic=True)
    rank(one), rank(two)
    assert (len(one.calls), len(two.calls)) == (1, 1)


def test_a_database_without_the_table_costs_no_ranking(
    endpoint: Endpoints, rank: Callable[..., RewardResult], database: Database
) -> None:
    """It is asked as if nothing were kept."""
    with database.writing() as writing:
        writing.execute(sa.text("DROP TABLE cached_scores"))
    asked = endpoint(deterministic=True)
    assert rank(asked).failure is None
    assert rank(asked).failure is None
    assert len(asked.calls) == 2


def test_what_is_kept_is_bounded_in_number_and_in_age(database: Database) -> None:
    """The newest stay; what is too old is not found, and goes with the next sweep."""
    store, answer = SqlScoreStore(database, 3), {"scores": [1.0]}
    for number in range(6):
        store.keep_answer(f"key {number}", answer)
    assert rows(database) == 3
    assert store.find_answer("key 0") is None
    assert store.find_answer("key 5") == answer
    with database.writing() as writing:
        writing.execute(
            sa.update(CachedScoresRow).values(created_at=CachedScoresRow.created_at - score_store.MAX_AGE_S)
        )
    assert store.find_answer("key 5") is None
    for number in range(3):
        store.keep_answer(f"late {number}", answer)
    assert rows(database) == 3


@pytest.mark.parametrize(("most", "left"), [(3, 3), (0, 0)])
def test_a_run_that_begins_deletes_what_is_too_much(database: Database, tmp_path: Path, most: int, left: int) -> None:
    """Also one that keeps too little to do so later, or nothing at all."""
    for number in range(6):
        SqlScoreStore(database, 100).keep_answer(f"key {number}", {"scores": [1.0]})
    settings = PlatformSettings(home=tmp_path, database_url=str(database.engine.url), score_cache_groups=most)
    cache = Worker(settings, session.run_session)._open_score_cache()
    assert (cache is None) == (most == 0)
    assert rows(database) == left


# ---- whole jobs -----------------------------------------------------------------------------------------------------

SPEC: dict[str, Any] = {
    "model": "tiny-turbo", "prompts": [{"prompt": "a red square"}, {"prompt": "a blue circle"}], "steps": 4,
    "candidates": 4, "prompts_per_step": 1, "max_staleness": 0, "checkpoint_every": 1, "samples": {"prompts": 0},
    "rewards": [{"name": "known", "evaluates": False}, {"name": "lots", "evaluates": False}],
    "method": {"drpo": {"positives": 1, "negatives": 1}}, "optimizer": {"lr": 1e-2},
}  # fmt: skip


def test_an_equal_job_asks_a_deterministic_reward_nothing_and_after_kill_9_trains_to_the_same_bits(
    endpoint: Endpoints, redis_url: str, database: Database, tmp_path: Path
) -> None:
    """The second job's process is killed while it waits for the reward that is asked; another goes on from there."""
    known, lots = endpoint(deterministic=True), endpoint()
    url = str(database.engine.url)
    settings = PlatformSettings(home=tmp_path, redis_url=redis_url, database_url=url, lease_s=2)
    registry, store = RewardRegistry(database), JobStore(database)
    for name, each in (("known", known), ("lots", lots)):
        registry.put_reward(name, Described(url=each.url))
    worker = Worker(settings, session.run_session, idle_s=0.05)

    first = store.create_job(TrainSpec.model_validate(SPEC))
    assert worker.train_next_job()
    assert store.get_job(first.id).state == "succeeded"
    assert len(known.calls) == len(lots.calls) == 4

    second, resume = store.create_job(TrainSpec.model_validate(SPEC)), threading.Event()
    lots.behave = lambda call: good(call) if call.number < 6 or resume.wait(120) else (503, {}, "{}")
    started = {**os.environ, "DIPOLE_HOME": str(tmp_path), "DIPOLE_REDIS_URL": redis_url, "DIPOLE_DATABASE_URL": url}
    command = [sys.executable, "-m", "dipole.cli", "serve", "worker"]
    with subprocess.Popen(command, env={**started, "DIPOLE_LEASE_S": "2"}) as process:
        wait_for(lambda: len(lots.calls) == 7 and process.poll() is None)
        process.kill()
    resume.set()
    wait_for(worker.train_next_job)  # once the lease has run out
    assert store.get_job(second.id).state == "succeeded"
    assert len(known.calls) == 4
    assert len(lots.calls) == 8

    assert weights(tmp_path, first.id) == weights(tmp_path, second.id)
    groups, _ = RankingLedger(database).list_groups(second.id)
    assert [(each["step"], set(each["rewards"])) for each in groups] == [(step, {"known", "lots"}) for step in range(4)]
    saved = [event.data for event in store.events_since(second.id, 0) if event.kind == "scores_reused"]
    assert {event["reward"] for event in saved} == {"known"}
    assert sum(event["groups"] for event in saved) >= 4
    assert not any(event.kind == "scores_reused" for event in store.events_since(first.id, 0))


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def weights(folder: Path, job: str) -> dict[str, bytes]:
    """The bytes of every file of weights that a job has left, by path."""
    root = folder / "artifacts" / "jobs" / job
    found = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*.safetensors")}
    assert found
    return found
