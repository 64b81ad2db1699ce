"""The job store: leases, fencing, desired states, events. Every test on SQLite and on PostgreSQL."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from alembic.config import Config
from cryptography.fernet import Fernet
from pydantic import SecretStr

from dipole.client.endpoint import Endpoint, check_reward_url
from dipole.database.migrations import alembic_config
from dipole.errors import ConfigurationError, Conflict, InvalidInput, LeaseLost, NotFound
from dipole.vault import Vault
from dipole_trainer.api.schemas import to_job_object
from dipole_trainer.database.engine import MIGRATIONS, Database, upgrade_database
from dipole_trainer.database.tables import Base, JobRow
from dipole_trainer.jobs import transitions
from dipole_trainer.jobs.leases import MAX_FRUITLESS_RESUMES
from dipole_trainer.jobs.ranking_ledger import RankingLedger, make_ledger_entry
from dipole_trainer.jobs.store import JobStore
from dipole_trainer.ranking.groups import CandidateGroup, RewardResult
from dipole_trainer.registry.api_keys import ApiKeys
from dipole_trainer.registry.rewards import RewardRegistry
from dipole_trainer.spec import PromptSpec, RewardSpec, TrainSpec

SPEC = TrainSpec(prompts=(PromptSpec(prompt="a red square"),), rewards=(RewardSpec(name="shapes"),), steps=4)


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without tables."""
    found = f"sqlite:///{tmp_path}/jobs.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    return str(found)


@pytest.fixture
def url(empty_url: str) -> str:
    """The URL of an empty, upgraded database."""
    upgrade_database(empty_url)
    return empty_url


@pytest.fixture
def store(url: str) -> Iterator[JobStore]:
    database = Database(url)
    yield JobStore(database)
    database.close()


def kinds(store: JobStore, job_id: str) -> list[str]:
    return [event.kind for event in store.events_since(job_id, 0)]


def expire(store: JobStore, job_id: str) -> None:
    """The lease runs out: what waiting for its end would give."""
    with store.database.writing() as session:
        session.execute(sa.update(JobRow).where(JobRow.id == job_id).values(lease_expires=0.0))


def move_times(store: JobStore, seconds: float) -> None:
    """What the database has written lies so far ahead: what a clock that is set back would give."""
    moved = {"lease_expires": JobRow.lease_expires + seconds, "waiting_until": JobRow.waiting_until + seconds}
    with store.database.writing() as session:
        session.execute(sa.update(JobRow).values(moved))


# ---- migrations -----------------------------------------------------------------------------------------------------


def test_migrations_make_what_the_models_declare(store: JobStore) -> None:
    """Nothing is left for alembic to change after upgrade(), so models and migrations agree."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    with store.database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_upgrade_may_run_again_and_at_once_from_several_processes(empty_url: str) -> None:
    """Every replica may run the migrations when it starts."""
    threads = [threading.Thread(target=upgrade_database, args=(empty_url,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    upgrade_database(empty_url)
    database = Database(empty_url)
    assert JobStore(database).list_jobs() == ([], False)
    database.close()


def test_migrations_go_down_again(url: str) -> None:
    """A downgrade leaves no table but alembic's own."""
    from alembic import command

    database = Database(url)
    with database.engine.begin() as connection:
        command.downgrade(alembic_config(connection, MIGRATIONS), "base")
    assert sa.inspect(database.engine).get_table_names() == ["alembic_version"]
    database.close()


def test_endpoints_registered_before_kinds_are_of_the_ranking_protocol(url: str) -> None:
    """Migrating from the revision before keeps each row, its key too; the way back drops what cannot be asked there."""
    from alembic import command

    database = Database(url)

    def migrate(move: Callable[[Config, str], None], revision: str) -> None:
        with database.engine.begin() as connection:
            move(alembic_config(connection, MIGRATIONS), revision)

    migrate(command.downgrade, "0002")
    columns = "(name, url, key, description, created_at)"
    with database.engine.begin() as connection:
        connection.exec_driver_sql(
            f"INSERT INTO rewards {columns} VALUES ('shapes', 'http://127.0.0.1:1', 'secret', 'd', 5.0)"
        )
    migrate(command.upgrade, "head")
    registry = RewardRegistry(database)
    row = registry.get_reward("shapes")
    assert (row.description, row.created_at) == ("d", 5.0)
    assert registry.get_endpoint("shapes") == Endpoint(url="http://127.0.0.1:1", key=SecretStr("secret"))
    judge = Endpoint(url="https://127.0.0.1:2", kind="vllm-score", options={"model": "m"}, tls="team")
    registry.put_reward("judge", judge)
    assert registry.get_endpoint("judge") == judge
    sealing = RewardRegistry(database, Vault(Fernet.generate_key().decode()))
    sealing.put_reward("sealed", Endpoint(url="http://127.0.0.1:3", key=SecretStr("secret")))
    migrate(command.downgrade, "0002")
    with database.engine.begin() as connection:
        assert connection.exec_driver_sql("SELECT name, key FROM rewards").all() == [("shapes", "secret")]
    migrate(command.upgrade, "head")
    database.close()


def test_registering_again_says_what_changed(store: JobStore) -> None:
    """New is None, the same is nothing, and otherwise the fields by name; options are kept as the kind reads them."""
    registry = RewardRegistry(store.database)
    judge = Endpoint(url="https://127.0.0.1:2", kind="vllm-score", options={"max_candidates": "8"})
    assert registry.put_reward("judge", judge)[1] is None
    assert registry.put_reward("judge", judge)[1] == []
    moved = judge.model_copy(update={"url": "https://127.0.0.1:3", "key": SecretStr("k"), "tls": "team"})
    row, changed = registry.put_reward("judge", moved, description="d")
    assert changed is not None
    assert sorted(changed) == ["description", "key", "tls", "url"]
    assert row.options == {"max_candidates": 8}


@pytest.mark.parametrize("bad", ["mysql://x/y", "sqlite://", "sqlite:///:memory:", "nonsense"])
def test_a_database_that_cannot_work_is_refused_at_start(bad: str) -> None:
    """The sentence names the setting."""
    with pytest.raises(ConfigurationError, match="DIPOLE_DATABASE_URL"):
        Database(bad)


# ---- callers --------------------------------------------------------------------------------------------------------


def test_a_job_keeps_its_whole_spec_and_shows_it_without_prompts(store: JobStore) -> None:
    """A job outlives the files it was made from, and a list of jobs stays small."""
    job = store.create_job(SPEC, extra={"suffix": "x"})
    assert store.load_spec(job.id) == SPEC
    assert store.get_job(job.id).state == "queued"
    assert "prompts" not in job.summary
    assert job.summary["prompt_count"] == 1


def test_lists_page_by_cursor_newest_first(store: JobStore) -> None:
    """Following `after` visits every job once, and says when there are no more."""
    ids = [store.create_job(SPEC).id for _ in range(5)]
    first, more = store.list_jobs(limit=2)
    assert ([job.id for job in first], more) == (ids[:-3:-1], True)
    second, _ = store.list_jobs(after=first[-1].id, limit=2)
    third, more = store.list_jobs(after=second[-1].id, limit=2)
    assert [job.id for job in (*first, *second, *third)] == ids[::-1]
    assert not more
    with pytest.raises(NotFound):
        store.list_jobs(after="ftjob-none")


def test_an_idempotency_key_makes_one_job(store: JobStore) -> None:
    """A repeat returns the first job; the same key with another request is a Conflict."""
    first = store.create_job(SPEC, idempotency_key="k", digest="d")
    assert store.create_job(SPEC, idempotency_key="k", digest="d").id == first.id
    with pytest.raises(Conflict):
        store.create_job(SPEC, idempotency_key="k", digest="other")
    assert len(store.list_jobs()[0]) == 1


def test_a_job_nobody_trains_obeys_at_once(store: JobStore) -> None:
    """queued -> paused -> queued -> cancelled without a worker; a cancelled job is never claimed."""
    job = store.create_job(SPEC)
    assert store.pause_job(job.id).state == "paused"
    assert store.claim_job("w", 60) is None
    assert store.resume_job(job.id).state == "queued"
    assert store.cancel_job(job.id).state == "cancelled"
    assert store.cancel_job(job.id).state == "cancelled"
    assert store.claim_job("w", 60) is None
    for verb in (store.pause_job, store.resume_job):
        with pytest.raises(Conflict):
            verb(job.id)


def test_a_running_job_is_asked_through_the_heartbeat(store: JobStore) -> None:
    """pause and cancel of a held job change what is desired; the worker makes it so."""
    job = store.create_job(SPEC)
    claim = store.claim_job("w", 60)
    assert claim is not None
    assert store.renew_lease(claim, 60) == "run"
    assert store.pause_job(job.id).state == "running"
    assert store.renew_lease(claim, 60) == "pause"
    assert store.finish_job(claim, "paused") == "paused"
    store.resume_job(job.id)
    again = store.claim_job("w", 60)
    assert again is not None
    store.cancel_job(job.id)
    assert store.renew_lease(again, 60) == "cancel"
    with pytest.raises(Conflict):
        store.resume_job(job.id)
    assert store.finish_job(again, "cancelled") == "cancelled"
    assert store.get_job(job.id).finished_at is not None


def test_a_resume_that_overtakes_the_pause_queues_the_job(store: JobStore) -> None:
    """The worker already stopped for the pause when the caller changed their mind: the job must not stay paused."""
    job = store.create_job(SPEC)
    claim = store.claim_job("w", 60)
    assert claim is not None
    store.pause_job(job.id)
    store.resume_job(job.id)
    assert store.finish_job(claim, "paused") == "queued"


# ---- leases ---------------------------------------------------------------------------------------------------------


def test_a_second_claim_is_a_no_op(store: JobStore) -> None:
    """A second delivery of the same wake-up changes nothing."""
    job = store.create_job(SPEC)
    claim = store.claim_job("one", 60, job_id=job.id)
    assert claim is not None
    assert (claim.spec, claim.fence) == (SPEC, 1)
    before = kinds(store, job.id)
    assert store.claim_job("two", 60, job_id=job.id) is None
    assert store.claim_job("one", 60) is None
    assert kinds(store, job.id) == before


def test_the_oldest_job_is_claimed_first(store: JobStore) -> None:
    """Workers serve in order of creation."""
    ids = [store.create_job(SPEC).id for _ in range(3)]
    claimed = [store.claim_job("w", 60) for _ in ids]
    assert [claim.job_id for claim in claimed if claim] == ids


def test_an_expired_lease_is_taken_over_and_fences_the_first_worker_out(store: JobStore) -> None:
    """After the takeover every write of the first worker raises LeaseLost and leaves no trace."""
    job = store.create_job(SPEC)
    first = store.claim_job("first", 0.2)
    assert first is not None
    assert store.claim_job("second", 60) is None
    time.sleep(0.4)  # the database's clock, not a patched one
    second = store.claim_job("second", 60)
    assert second is not None
    assert (second.job_id, second.fence) == (job.id, first.fence + 1)
    before = kinds(store, job.id)
    group, result = ranked()
    for write in (
        lambda: store.renew_lease(first, 60),
        lambda: store.append_event(first, "step", {"step": 1}),
        lambda: store.add_checkpoint(first, 1, "checkpoint-1", {}, kept=[1]),
        lambda: store.finish_job(first, "succeeded"),
        lambda: store.release_job(first, ""),
        lambda: store.wait_for_reward(first, "shapes", ""),
        lambda: RankingLedger(store.database).keep_ranking(first, make_ledger_entry(group, "shapes", result)),
    ):
        with pytest.raises(LeaseLost):
            write()
    assert kinds(store, job.id) == before
    assert store.get_job(job.id).state == "running"
    assert RankingLedger(store.database).list_groups(job.id) == ([], False)
    assert store.renew_lease(second, 60) == "run"


def test_a_lease_from_before_the_clock_was_set_back_keeps_no_job(store: JobStore) -> None:
    """A worker that died while the database's clock was two hours ahead is taken over at once when it is right again,
    and its wait for a reward ends; a lease that is merely longer than ours is left alone."""
    job = store.create_job(SPEC)
    assert store.claim_job("died", 30) is not None
    move_times(store, 7200)
    second = store.claim_job("second", 30)
    assert second is not None
    assert store.wait_for_reward(second, "shapes", "timeout") == "paused"
    move_times(store, 7200)
    assert store.take_due_waits() == [(job.id, "shapes")]
    assert store.take_due_waits() == []
    assert store.requeue_waiting_job(job.id, "shapes")
    assert store.claim_job("with another setting", 120) is not None
    assert store.claim_job("third", 30) is None


def test_a_late_heartbeat_keeps_a_job_that_nobody_took(store: JobStore) -> None:
    """A worker that paused longer than its lease goes on when it is still the last who claimed."""
    store.create_job(SPEC)
    claim = store.claim_job("w", 0.05)
    assert claim is not None
    time.sleep(0.2)
    assert store.renew_lease(claim, 60) == "run"
    assert store.claim_job("other", 60) is None


@pytest.mark.parametrize(("verb", "state"), [("pause", "paused"), ("cancel", "cancelled")])
def test_a_dead_workers_job_still_obeys(store: JobStore, verb: str, state: str) -> None:
    """Asked for before or after the worker died, the job gets there without another training step."""
    asked_before, asked_after = store.create_job(SPEC), store.create_job(SPEC)
    for _ in range(2):
        assert store.claim_job("w", 60) is not None
    getattr(store, f"{verb}_job")(asked_before.id)
    for job in (asked_before, asked_after):
        expire(store, job.id)
    getattr(store, f"{verb}_job")(asked_after.id)
    assert store.claim_job("other", 60) is None
    assert {store.get_job(job.id).state for job in (asked_before, asked_after)} == {state}


def test_a_job_that_kills_its_workers_is_failed_in_the_end(store: JobStore) -> None:
    """Without a checkpoint between, MAX_CRASHES takeovers are enough; a checkpoint starts the count again."""
    job = store.create_job(SPEC)
    claim = store.claim_job("w", 60)
    assert claim is not None
    store.add_checkpoint(claim, 1, "checkpoint-1", {}, kept=[1])
    for _ in range(transitions.MAX_CRASHES):
        expire(store, job.id)
        assert store.claim_job("w", 60) is not None
    expire(store, job.id)
    assert store.claim_job("w", 60) is None
    failed = store.get_job(job.id)
    assert failed.state == "failed"
    assert failed.error is not None
    assert "worker died" in failed.error["message"]


def test_a_released_job_goes_to_the_next_worker(store: JobStore) -> None:
    """SIGTERM's way: back to the queue at once, with a higher fence for the next."""
    store.create_job(SPEC)
    first = store.claim_job("first", 60)
    assert first is not None
    assert store.release_job(first, "stopped") == "queued"
    second = store.claim_job("second", 60)
    assert second is not None
    assert second.fence > first.fence
    with pytest.raises(LeaseLost):
        store.renew_lease(first, 60)


RACER = """
import sys, time
from dipole_trainer.database.engine import Database
from dipole_trainer.jobs.store import JobStore
store = JobStore(Database(sys.argv[1]))
time.sleep(max(0.0, float(sys.argv[2]) - time.time()))
while (claim := store.claim_job(sys.argv[3], 60)) is not None:
    print(claim.job_id, claim.fence, flush=True)
"""


def test_real_processes_racing_for_jobs_share_them_without_overlap(store: JobStore, url: str) -> None:
    """Three processes claim forty jobs at the same moment: each job goes to one of them, once, with fence 1."""
    ids = [store.create_job(SPEC).id for _ in range(40)]
    start = str(time.time() + 4)
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, url, start, name], stdout=subprocess.PIPE, text=True)
        for name in ("one", "two", "three")
    ]
    lines = [line.split() for racer in racers for line in racer.communicate(timeout=120)[0].splitlines()]
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    assert sorted(job_id for job_id, _ in lines) == sorted(ids)
    assert {fence for _, fence in lines} == {"1"}


# ---- what a worker writes -------------------------------------------------------------------------------------------


def test_event_cursors_grow_and_a_step_moves_the_job(store: JobStore) -> None:
    """The cursor pages both ways; numbers that JSON lacks become null, numpy scalars plain numbers."""
    job = store.create_job(SPEC)
    claim = store.claim_job("w", 60)
    assert claim is not None
    data = {"step": 2, "loss": float("nan"), "eta_s": np.float32(1.5), "path": Path("a/b"), "bad": "nul\x00"}
    cursor = store.append_event(claim, "step", data)
    last = store.append_event(claim, "evaluation", {})
    assert last > cursor
    assert [event.id for event in store.events_since(job.id, cursor)] == [last]
    newest, more = store.list_events(job.id, limit=1)
    assert ([event.id for event in newest], more) == ([last], True)
    stored = next(event for event in store.list_events(job.id, after=last)[0] if event.id == cursor)
    assert stored.data == {"step": 2, "loss": None, "eta_s": 1.5, "path": "a/b", "bad": "nul\N{REPLACEMENT CHARACTER}"}
    assert (store.get_job(job.id).step, store.get_job(job.id).eta_s) == (2, 1.5)


def test_a_running_job_shows_what_people_have_before_them(store: JobStore) -> None:
    """From the last event that said so; a step says it anew, and a job that nobody trains shows nothing."""
    job = store.create_job(SPEC, extra={"metadata": None, "suffix": None})
    claim = store.claim_job("w", 60)
    assert claim is not None
    told = {"groups": 5, "step_groups": 2, "oldest_s": 61.5, "per_minute": 1.5, "expected_s": 80.0}

    def shown() -> dict[str, dict[str, object]] | None:
        return to_job_object(store.get_job(job.id)).model_dump()["pending_rankings"]

    assert shown() is None
    store.append_event(claim, "rankings_pending", {"step": 0, "reward": "people", **told})
    store.append_event(claim, "evaluating", {})
    assert shown() == {"people": told}
    pending = {"artists": {"groups": 1, "oldest_s": 2.0, "per_minute": None}}
    store.append_event(claim, "step", {"step": 1, "pending": pending})
    assert shown() == {"artists": {**pending["artists"], "step_groups": None, "expected_s": None}}
    store.append_event(claim, "step", {"step": 2})
    assert shown() is None
    store.append_event(claim, "rankings_pending", {"step": 2, "reward": "people", **told})
    store.release_job(claim, "the worker was stopped")
    assert shown() is None


def test_checkpoints_are_kept_once_a_step_and_forgotten_when_pruned(store: JobStore) -> None:
    """A resumed job writes a step again: the row keeps its id. Rows of pruned folders go."""
    job = store.create_job(SPEC)
    claim = store.claim_job("w", 60)
    assert claim is not None
    first = store.add_checkpoint(claim, 1, "checkpoint-1", {"train_loss": 1.0}, kept=[1])
    assert store.add_checkpoint(claim, 1, "checkpoint-1", {"train_loss": 0.5}, kept=[1]).id == first.id
    store.add_checkpoint(claim, 2, "checkpoint-2", {}, kept=[1, 2])
    store.add_checkpoint(claim, 3, "checkpoint-3", {}, kept=[2, 3])
    rows, more = store.list_checkpoints(job.id, limit=1)
    assert ([row.step for row in rows], more) == ([3], True)
    assert [row.step for row in store.list_checkpoints(job.id, after=rows[0].id)[0]] == [2]


def test_a_job_waits_for_its_reward_and_goes_on_when_it_is_back(store: JobStore) -> None:
    """The event has the reason; one look is booked at a time; a caller's pause ends the waiting."""
    job = store.create_job(SPEC)
    claim = store.claim_job("w", 60)
    assert claim is not None
    assert store.wait_for_reward(claim, "shapes", "timeout: no answer") == "paused"
    waiting = store.get_job(job.id)
    assert (waiting.waiting_reward, waiting.waiting_reason) == ("shapes", "timeout: no answer")
    assert store.take_due_waits() == []
    with store.database.writing() as session:
        session.execute(sa.update(JobRow).values(waiting_until=0.0))
    assert store.take_due_waits() == [(job.id, "shapes")]
    assert store.take_due_waits() == []
    assert store.requeue_waiting_job(job.id, "shapes")
    assert not store.requeue_waiting_job(job.id, "shapes")
    assert store.get_job(job.id).state == "queued"
    assert "timeout: no answer" in next(e.message for e in store.events_since(job.id, 0) if e.kind == "paused")
    claim = store.claim_job("w", 60)
    assert claim is not None
    store.wait_for_reward(claim, "shapes", "again")
    store.pause_job(job.id)
    with store.database.writing() as session:
        session.execute(sa.update(JobRow).values(waiting_until=0.0))
    assert store.take_due_waits() == []
    assert store.get_job(job.id).state == "paused"


def test_whatever_an_endpoint_says_can_be_written(store: JobStore) -> None:
    """NULs and half surrogate pairs, which databases refuse, end neither the wait nor the job."""
    job = store.create_job(SPEC)
    claim = store.claim_job("w", 60)
    assert claim is not None
    assert store.wait_for_reward(claim, "shapes", "it said \x00 and \ud800") == "paused"
    assert store.get_job(job.id).waiting_reason == "it said \N{REPLACEMENT CHARACTER} and ?"
    store.resume_job(job.id)
    claim = store.claim_job("w", 60)
    assert claim is not None
    assert store.finish_job(claim, "failed", error={"code": "internal", "message": "\x00\ud800"}) == "failed"
    assert not any("\x00" in event.message for event in store.events_since(job.id, 0))


def test_a_reward_that_is_ready_but_never_ranks_does_not_resume_a_job_for_ever(store: JobStore) -> None:
    """Resumed MAX_FRUITLESS_RESUMES times without a step, the job stays paused and says so; a caller's resume starts
    anew.
    """
    job = store.create_job(SPEC)
    for _ in range(MAX_FRUITLESS_RESUMES):
        claim = store.claim_job("w", 60)
        assert claim is not None
        store.wait_for_reward(claim, "shapes", "invalid_response")
        assert store.requeue_waiting_job(job.id, "shapes")
    claim = store.claim_job("w", 60)
    assert claim is not None
    store.wait_for_reward(claim, "shapes", "invalid_response")
    assert store.get_job(job.id).waiting_until is None
    assert store.take_due_waits() == []
    assert "resume the job" in store.list_events(job.id)[0][0].message
    store.resume_job(job.id)
    claim = store.claim_job("w", 60)
    assert claim is not None
    store.append_event(claim, "step", {"step": 1})
    store.wait_for_reward(claim, "shapes", "timeout")
    assert store.get_job(job.id).waiting_until is not None


def ranked(scores: tuple[float | None, ...] = (0.5, None)) -> tuple[CandidateGroup, RewardResult]:
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    group = CandidateGroup(
        id="g1", step=1, prompt="a red square", metadata={"tag": "one"}, images=images, seeds=(7, 2**62)
    )
    parts = {"strict": (1.0, None)}
    named = {"model": "shapes", "model_revision": "r1"}
    return group, RewardResult(scores=scores, sub_scores=parts, errors={1: "broken"}, **named, seconds=0.1)


def test_the_ledger_keeps_enough_to_audit_a_ranking(store: JobStore) -> None:
    """Prompt, seeds, a hash per candidate, scores and revision of each reward; a repeat replaces, never doubles."""
    job, ledger = store.create_job(SPEC), RankingLedger(store.database)
    claim = store.claim_job("w", 60)
    assert claim is not None
    group, result = ranked()
    ledger.keep_ranking(claim, make_ledger_entry(group, "shapes", result))
    ledger.keep_ranking(claim, make_ledger_entry(group, "colour", result))
    ledger.keep_ranking(claim, make_ledger_entry(group, "shapes", ranked((0.25, 1.0))[1]))
    (kept,), more = ledger.list_groups(job.id)
    assert not more
    assert (kept["prompt"], kept["seeds"], kept["metadata"]) == ("a red square", [7, 2**62], {"tag": "one"})
    assert len(set(kept["candidates"])) == 2
    assert kept["rewards"]["shapes"]["scores"] == [0.25, 1.0]
    assert kept["rewards"]["colour"]["scores"] == [0.5, None]
    assert kept["rewards"]["colour"]["sub_scores"] == {"strict": [1.0, None]}
    assert kept["rewards"]["colour"]["errors"] == {"1": "broken"}
    assert kept["rewards"]["colour"]["model_revision"] == "r1"


def test_a_step_s_groups_are_those_that_it_trained_on(store: JobStore) -> None:
    """Its evaluation's are not, and neither are those that were ranked again on another decoder's images."""
    job, ledger = store.create_job(SPEC), RankingLedger(store.database)
    claim = store.claim_job("w", 60)
    assert claim is not None
    group, result = ranked()
    for name in ("job.1.0", "job.1.0.tiny", "job.eval1.0"):
        ledger.keep_ranking(claim, make_ledger_entry(replace(group, id=name), "shapes", result))
    assert [each["group"] for each in ledger.list_groups(job.id, step=1)[0]] == ["job.1.0"]
    assert len(ledger.list_groups(job.id)[0]) == 3


# ---- the registries --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://evil.example/",
        "http://127.0.0.1@evil.example/",
        "http://user:password@127.0.0.1/",
        "http://evil.example\\@127.0.0.1/",
        "ftp://127.0.0.1/",
        "file:///etc/passwd",
        "http://127.0.0.1:99999/",
        "http://127.0.0.1/?a=b",
        "http://127.0.0.1/#x",
        "http://127.0.0.1 /",
        "http://[::1",
        "http://notexample.org",
        "http://example.org",
        "127.0.0.1:80",
        "",
        "http://127.0.0.1:1/\x7f",
        "http://127.0.0.1/" + "a" * 70_000,
        "http://@127.0.0.1/",
        "http://127.0.0.1/?",
        "http://127.0.0.1/#",
        "http://127.0.0.1:0/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f000001/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::2]/",
        "http://127.0.0.1.evil.example/",
        "http://evil.example./",
        "http://.example.org/",
        "http://example.org./",
        "http://ⓔxample.org/",
        "http://a。example.org/",
        "http://only.lan:8402",
        "http://only.lan",
        "https://[::9]:8443",
    ],
)
def test_a_reward_url_off_the_allowed_hosts_is_refused(url: str) -> None:
    """Whatever a URL pretends, only plain HTTP to an allowed host passes."""
    with pytest.raises(InvalidInput):
        check_reward_url(url, ["127.0.0.1", "*.example.org", "::1", "only.lan:8401", "[::9]:443"], field="url")


def test_allowed_reward_urls_lose_only_their_last_slash() -> None:
    """`*.` stands for hosts below a domain, `:port` for that port; case, a root dot and IPv6's forms do not matter."""
    hosts = ["127.0.0.1", "*.example.org", "::1", "only.lan:8401", "[::9]:443", "Web.LAN.:80"]
    assert check_reward_url("http://127.0.0.1:8401/", hosts, field="url") == "http://127.0.0.1:8401"
    assert check_reward_url("https://A.Example.org/x", hosts, field="url") == "https://A.Example.org/x"
    assert check_reward_url("http://[::1]:1", hosts, field="url") == "http://[::1]:1"
    for url in (
        "http://[0:0:0:0:0:0:0:1]:8401/x", "HTTP://127.0.0.1:65535", "http://127.0.0.1.", "https://a.example.org.",
        "https://A.B.EXAMPLE.org", "http://ONLY.lan:8401", "https://[::9]", "http://[0::9]:443", "http://web.lan",
    ):  # fmt: skip
        assert check_reward_url(url, hosts, field="url") == url


def test_what_is_said_of_a_wrong_url_does_not_repeat_its_password() -> None:
    """The field is named; userinfo may be a secret, and the message goes to logs and callers."""
    for url in ("http://ann:pass-word@127.0.0.1", "http://ann:pass-word@[::1", "ftp://ann:pass-word@h"):
        with pytest.raises(InvalidInput) as caught:
            check_reward_url(url, ["127.0.0.1"], field="rewards[0].url")
        assert "pass-word" not in str(caught.value)
        assert "rewards[0].url" in str(caught.value)


def test_endpoints_keys_are_sealed_with_the_setting_and_rotate(store: JobStore) -> None:
    """The row holds no key's text; the older key opens it until it is registered again; plain rows still open."""
    older, newer = (Fernet.generate_key().decode() for _ in range(2))
    endpoint = Endpoint(url="http://127.0.0.1:1", key=SecretStr("key-of-the-judge"))

    def registry(keys: str | None) -> RewardRegistry:
        return RewardRegistry(store.database, Vault(keys))

    registry(None).put_reward("judge", endpoint)
    assert registry(older).get_reward("judge").key == "key-of-the-judge"
    assert registry(older).get_endpoint("judge") == endpoint
    for keys in (older, f"{newer},{older}"):
        assert registry(keys).put_reward("judge", endpoint)[1] == []  # sealed anew, and no other than it was
        assert "key-of-the-judge" not in (registry(keys).get_reward("judge").key or "")
        assert registry(keys).get_endpoint("judge") == endpoint
    assert registry(newer).get_endpoint("judge") == endpoint
    for keys, said in ((older, "does not open"), (None, "set DIPOLE_SECRETS_KEY")):
        with pytest.raises(ConfigurationError, match=said):
            registry(keys).get_endpoint("judge")
    assert registry(older).put_reward("judge", endpoint)[1] == ["key"]
    with pytest.raises(ConfigurationError, match="must be Fernet keys"):
        registry("not-a-key")


def test_a_reward_in_use_cannot_be_deleted(store: JobStore) -> None:
    """An open job's reward must stay; afterwards it may go."""
    registry = RewardRegistry(store.database)
    registry.put_reward("shapes", Endpoint(url="http://127.0.0.1:1", key=SecretStr("secret")))
    job = store.create_job(SPEC)
    with pytest.raises(Conflict, match=job.id):
        registry.delete_reward("shapes")
    store.cancel_job(job.id)
    registry.delete_reward("shapes")
    assert registry.list_rewards() == []


def test_keys_are_hashed_scoped_and_revocable(store: JobStore) -> None:
    """The database never holds a key's text."""
    from dipole.web.auth import hash_key

    api_keys = ApiKeys(store.database)
    row, text = api_keys.create_key("ann", ["train"])
    assert text not in (row.sha256, row.id)
    found = api_keys.find_key(hash_key(text))
    assert found is not None
    assert found.scopes == ["train"]
    assert api_keys.find_key(hash_key("other")) is None
    api_keys.revoke_key(row.id)
    assert api_keys.find_key(hash_key(text)) is None
    with pytest.raises(NotFound):
        api_keys.revoke_key(row.id)
