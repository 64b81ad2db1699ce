"""The trainer worker with a session that trains nothing, no torch: outcomes, waits, SIGTERM, kill -9, a lost lease."""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, cast

import fsspec
import httpx
import numpy as np
import pytest
import sqlalchemy as sa
from fsspec.implementations.memory import MemoryFileSystem
from pydantic import SecretStr

from dipole.client.endpoint import Endpoint
from dipole.errors import InvalidInput, LeaseLost, RewardUnavailable
from dipole.protocol import job_events
from dipole.settings import PlatformSettings
from dipole_trainer.database.engine import Database, upgrade_database
from dipole_trainer.database.tables import JobRow
from dipole_trainer.distributed.group import ProcessGroup as Processes
from dipole_trainer.jobs.ranking_ledger import RankingLedger
from dipole_trainer.jobs.store import JobStore
from dipole_trainer.ranking.celery_ranker import ResolvedReward
from dipole_trainer.ranking.groups import CandidateGroup, RankedGroup, RankingBacklog, RewardResult
from dipole_trainer.ranking.in_flight import OnRanked
from dipole_trainer.ranking.weight_changes import RewardWeights
from dipole_trainer.registry.rewards import RewardRegistry
from dipole_trainer.spec import PromptSpec, RewardSpec, TrainSpec
from dipole_trainer.storage.artifacts import ArtifactStore
from dipole_trainer.worker import claimed_job, followers
from dipole_trainer.worker.health import WorkerUnhealthy, check_health
from dipole_trainer.worker.worker import Outcome, Worker

REWARD = RewardSpec(name="shapes")
GROUP = CandidateGroup(id="g", step=1, prompt="p", metadata=None, images=np.zeros((2, 4, 4, 3), np.uint8), seeds=(1, 2))


def spec(**more: Any) -> TrainSpec:
    return TrainSpec(**{"prompts": (PromptSpec(prompt="x"),), "rewards": (REWARD,), "steps": 6, **more})


class FakeRanker:
    """Answers nothing; says when it was told to forget."""

    made: list[FakeRanker]

    def __init__(self, rewards: Sequence[ResolvedReward], on_ranked: OnRanked) -> None:
        self.rewards, self.on_ranked, self.cancelled = rewards, on_ranked, False

    def takes_latents(self) -> bool:
        return False

    def submit(self, group: CandidateGroup) -> None:
        self.on_ranked(group, "shapes", RewardResult(scores=(0.5, 1.0), model="shapes", model_revision="r1"))

    def collect(self, timeout_s: float) -> RankedGroup | None:
        return None

    def list_pending(self) -> dict[str, RankingBacklog]:
        return {}

    def list_unanswered(self) -> dict[str, dict[str, float]]:
        return {}

    def cancel(self, *, withdraw: bool = False) -> None:
        self.cancelled = True

    def close(self) -> None:
        self.cancel()


class World:
    """A platform in a folder: settings, stores, and workers over it."""

    def __init__(self, folder: Path, **more: Any) -> None:
        self.settings = PlatformSettings(
            home=folder, database_url=f"sqlite:///{folder}/jobs.db", models_dir=folder / "models",
            **{"artifacts_url": str(folder / "artifacts"), **more},
        )  # fmt: skip
        upgrade_database(self.settings.database_url)
        self.database = Database(self.settings.database_url)
        self.store = JobStore(self.database)
        self.rankers: list[FakeRanker] = []
        RewardRegistry(self.database).put_reward(
            "shapes", Endpoint(url="http://127.0.0.1:8401", key=SecretStr("secret"))
        )

    def make_ranker(
        self, settings: PlatformSettings, job_id: str, rewards: Sequence[ResolvedReward], on_ranked: OnRanked, _: Any
    ) -> FakeRanker:
        self.rankers.append(FakeRanker(rewards, on_ranked))
        return self.rankers[-1]

    def worker(self, session: Callable[..., Outcome], **more: Any) -> Worker:
        return Worker(self.settings, session, self.make_ranker, idle_s=0.05, **more)

    def kinds(self, job_id: str) -> list[str]:
        return [event.kind for event in self.store.events_since(job_id, 0)]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.database.close()


def train(
    spec: TrainSpec,
    *,
    job_id: str,
    workdir: Path,
    models_dir: Path,
    ranker: Any,
    on_event: Any,
    control: Any,
    data: Path | None = None,
    pause_s: float = 0.0,
    **_: Any,
) -> Outcome:
    """What session.run does, without the training: steps, checkpoints, resume, control."""
    done = max((int(path.name.split("-")[1]) for path in workdir.glob("checkpoint-*")), default=0)
    if done:
        on_event("resumed", {"step": done})

    def save() -> None:
        (workdir / f"checkpoint-{done}").mkdir(exist_ok=True)
        (workdir / f"checkpoint-{done}" / "state.json").write_text(json.dumps({"step": done}))
        on_event("checkpoint", {"step": done, "path": f"checkpoint-{done}"})

    while done < spec.steps:
        if (order := control()) != "run":
            save()
            return "cancelled" if order == "cancel" else "paused"
        time.sleep(pause_s)
        done += 1
        on_event(
            "step", {"step": done, "steps": spec.steps, "loss": 1 / done, "eta_s": 1.0, "rewards": {"shapes": 0.5}}
        )
        if done % spec.checkpoint_every == 0 or done == spec.steps:
            save()
    return "succeeded"


# ---- outcomes -------------------------------------------------------------------------------------------------------


def test_a_job_is_trained_to_its_end(world: World) -> None:
    """Events, checkpoints and the state follow the session; the ranker gets the resolved reward, and is closed."""
    job = world.store.create_job(spec(checkpoint_every=3))
    worker = world.worker(train)
    assert worker.train_next_job()
    assert not worker.train_next_job()
    assert world.store.get_job(job.id).state == "succeeded"
    middle = ["step", "step", "step", "checkpoint"]
    assert world.kinds(job.id) == ["created", "queued", "running", *middle, *middle, "succeeded"]
    assert [row.step for row in world.store.list_checkpoints(job.id)[0]] == [6, 3]
    assert world.store.list_checkpoints(job.id)[0][0].metrics == {"train_loss": pytest.approx(1 / 6), "shapes": 0.5}
    (ranker,) = world.rankers
    assert ranker.cancelled
    assert ranker.rewards[0].endpoint == Endpoint(url="http://127.0.0.1:8401", key=SecretStr("secret"))


def test_rankings_reach_the_ledger_while_training(world: World) -> None:
    """What the ranker reports is kept under the job, with the reward's revision."""

    def session(spec: TrainSpec, *, ranker: Any, **rest: Any) -> Outcome:
        ranker.submit(GROUP)
        return "succeeded"

    job = world.store.create_job(spec())
    world.worker(session).train_next_job()
    (entry,), _ = RankingLedger(world.database).list_groups(job.id)
    assert entry["rewards"]["shapes"]["model_revision"] == "r1"


def test_every_event_is_a_sentence(world: World) -> None:
    """With its figures; less memory than was asked for is a warning."""
    said = {
        "out_of_memory": ({"chunk_size": 4}, "warn", "Out of memory: 4 samples are worked on at once from here on"),
        "best": ({"step": 20, "score": "shapes", "value": 0.51234}, "info", "The best is step 20: shapes 0.5123"),
        "evaluating": (
            {"step": 20, "prompts_done": 8, "prompts": 32}, "info", "Evaluating at step 20: 8 of 32 prompts",
        ),
    }  # fmt: skip

    def session(spec: TrainSpec, *, on_event: Any, **rest: Any) -> Outcome:
        for kind, (data, _, _) in said.items():
            on_event(kind, data)
        return "succeeded"

    job = world.store.create_job(spec())
    assert world.worker(session).train_next_job()
    events = {event.kind: (event.level, event.message) for event in world.store.events_since(job.id, 0)}
    assert {kind: events[kind] for kind in said} == {kind: tuple(rest) for kind, (_, *rest) in said.items()}
    sources = " ".join(path.read_text() for path in Path(claimed_job.__file__).parents[1].rglob("*.py"))
    assert 'on_event("' not in sources, "every event is one of those of job_events"
    emitted = {event.kind for event in job_events.SESSION_EVENTS} - {"checkpoint"}  # the store has that in words
    assert all(f"job_events.{event.__name__}(" in sources for event in job_events.SESSION_EVENTS)
    assert emitted > said.keys()


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (RuntimeError("CUDA out of memory"), "internal", "RuntimeError: CUDA out of memory"),
        (InvalidInput("features: no such extractor", field="features"), "invalid_input", "features: no such extractor"),
        (MemoryError(), "internal", "MemoryError: "),
    ],
)
def test_an_error_fails_the_job_with_a_sentence(world: World, error: Exception, code: str, sentence: str) -> None:
    """The worker lives on, the job says why."""

    def session(spec: TrainSpec, **rest: Any) -> Outcome:
        raise error

    job = world.store.create_job(spec())
    assert world.worker(session).train_next_job()
    failed = world.store.get_job(job.id)
    assert failed.state == "failed"
    assert failed.error is not None
    assert (failed.error["code"], failed.error["message"]) == (code, sentence)
    assert sentence in world.store.list_events(job.id)[0][0].message
    assert world.rankers[0].cancelled


class Gpu:
    """torch, as far as a worker asks it between jobs: there is no GPU here."""

    OutOfMemoryError = type("OutOfMemoryError", (RuntimeError,), {})

    def __init__(self, fault: Exception | None = None) -> None:
        self.cuda, self.fault, self.freed = self, fault, 0

    def is_initialized(self) -> bool:
        return True

    def empty_cache(self) -> None:
        self.freed += 1

    def zeros(self, size: int, *, device: str) -> np.ndarray:
        if self.fault is not None:
            raise self.fault
        return np.zeros(size)


def test_a_worker_whose_gpu_is_lost_ends(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its job says why and goes on in another process, as after kill -9, and the queue is not drained into failures."""
    fault = RuntimeError("CUDA error: device-side assert triggered")
    monkeypatch.setitem(sys.modules, "torch", cast(ModuleType, Gpu(fault)))
    job, other = (world.store.create_job(spec()) for _ in range(2))

    def session(spec: TrainSpec, **rest: Any) -> Outcome:
        raise fault

    with pytest.raises(RuntimeError, match="device-side assert"):
        world.worker(session).train_next_job()
    assert [world.store.get_job(each.id).state for each in (job, other)] == ["running", "queued"]
    event = world.store.list_events(job.id)[0][0]
    assert (event.kind, event.level) == ("accelerator_lost", "warn")
    assert "device-side assert" in event.message

    with world.store.database.writing() as transaction:
        transaction.execute(sa.update(JobRow).where(JobRow.id == job.id).values(lease_expires=0.0))
    monkeypatch.setitem(sys.modules, "torch", cast(ModuleType, Gpu()))
    assert world.worker(train).train_next_job()
    assert world.store.get_job(job.id).state == "succeeded"


@pytest.mark.parametrize("fault", [None, Gpu.OutOfMemoryError("CUDA out of memory")])
def test_an_error_that_the_gpu_survives_is_the_job_s(
    world: World, monkeypatch: pytest.MonkeyPatch, fault: Exception | None
) -> None:
    """Also where the memory is still full of it."""
    monkeypatch.setitem(sys.modules, "torch", cast(ModuleType, Gpu(fault)))
    job = world.store.create_job(spec())

    def session(spec: TrainSpec, **rest: Any) -> Outcome:
        raise RuntimeError("CUDA error: invalid configuration argument")

    assert world.worker(session).train_next_job()
    assert world.store.get_job(job.id).state == "failed"


class Follower(Processes):
    """A process that is told of one job, and then of none."""

    rank, size = 1, 2

    def __init__(self, *said: dict[str, Any]) -> None:
        super().__init__("cpu")
        self.said, self.left = [*said, followers.END_MESSAGE], list[Exception | None]()

    def all_gather(self, message: Any, check_stop: Any = None) -> list[Any]:
        return [self.said.pop(0)]

    def report(self, kind: str, data: Any) -> None:
        pass

    def leave_run(self, problem: Exception | None = None) -> None:
        self.left.append(problem)


def follow(world: World, follower: Follower, session: Any) -> None:
    followers.follow_main(cast(Any, follower), world.settings, session, world.make_ranker)


def test_a_follower_whose_gpu_is_lost_ends(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not fail the job for all and wait for the next; the others notice that it is gone."""
    fault = RuntimeError("CUDA error: device-side assert triggered")
    follower = Follower(followers.job_message("job", spec(), []))

    def session(spec: TrainSpec, **rest: Any) -> Outcome:
        raise fault

    with monkeypatch.context() as lost:
        lost.setitem(sys.modules, "torch", cast(ModuleType, Gpu(fault)))
        with pytest.raises(RuntimeError, match="device-side assert"):
            follow(world, follower, session)
    assert follower.left == []
    follow(world, other := Follower(followers.job_message("job", spec(), [])), session)
    assert other.left == [fault]


@pytest.mark.parametrize("leads", [True, False])
def test_a_finished_job_s_memory_is_given_back(world: World, monkeypatch: pytest.MonkeyPatch, leads: bool) -> None:
    """What it left in reference cycles is gone, and so is what torch keeps of it, before there is another job."""
    gpu, left = Gpu(), list[weakref.ref[Any]]()
    monkeypatch.setitem(sys.modules, "torch", cast(ModuleType, gpu))

    def session(spec: TrainSpec, **rest: Any) -> Outcome:
        model = FakeRanker([], rest["ranker"].on_ranked)
        model.itself = model  # type: ignore[attr-defined]
        left.append(weakref.ref(model))
        return "succeeded"

    gc.disable()
    try:
        if leads:
            world.store.create_job(spec())
            assert world.worker(session).train_next_job()
        else:
            follow(world, Follower(followers.job_message("job", spec(), [])), session)
    finally:
        gc.enable()
    assert left[0]() is None
    assert gpu.freed == 1


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"rewards": (RewardSpec(name="gone"),)}, "gone is no longer registered"),
        ({"rewards": (RewardSpec(name="x", url="http://evil.example"),)}, "evil.example"),
        ({"model": "../secret"}, "unknown model"),
    ],
)
def test_what_is_no_longer_allowed_fails_the_job(world: World, given: dict[str, Any], sentence: str) -> None:
    """The worker checks again what the API checked: registrations, hosts and models may have changed since."""
    job = world.store.create_job(spec(**given))
    world.worker(train).train_next_job()
    error = world.store.get_job(job.id).error
    assert error is not None
    assert sentence in error["message"]


def test_a_job_of_another_version_fails_alone(world: World) -> None:
    """One that this version cannot read, queued or waiting, ends with a sentence; the next job is trained."""
    odd, waiting, fine = (world.store.create_job(spec()) for _ in range(3))
    with world.store.database.writing() as transaction:
        unread = {"spec": '{"steps": 4, "forgotten_knob": 1}'}
        transaction.execute(sa.update(JobRow).where(JobRow.id.in_([odd.id, waiting.id])).values(**unread))
        away = {"state": "paused", "waiting_reward": "shapes", "waiting_until": 0.0}
        transaction.execute(sa.update(JobRow).where(JobRow.id == waiting.id).values(**away))
    worker = world.worker(train)
    worker.requeue_waiting_jobs()
    while worker.train_next_job():
        pass
    assert world.store.get_job(fine.id).state == "succeeded"
    for job in (odd, waiting):
        error = world.store.get_job(job.id).error
        assert world.store.get_job(job.id).state == "failed"
        assert error is not None
        assert "this version cannot read the job's settings" in error["message"]


def test_pause_resume_and_cancel_reach_the_session(world: World) -> None:
    """Asked for while training: stops with a checkpoint, goes on from it, stops for good."""
    world.settings.lease_s = 0.4  # heartbeats four times as often: the test need not wait
    job = world.store.create_job(spec(steps=10_000))
    asked = {"pause": world.store.pause_job, "cancel": world.store.cancel_job}

    def session(spec: TrainSpec, **rest: Any) -> Outcome:
        return train(spec, **rest, pause_s=0.02)

    for verb, state in (("pause", "paused"), ("cancel", "cancelled")):
        timer = threading.Timer(0.5, asked[verb], [job.id])
        timer.start()
        assert world.worker(session).train_next_job()
        timer.join()
        assert world.store.get_job(job.id).state == state
        if verb == "pause":
            world.store.resume_job(job.id)
    assert "resumed" in world.kinds(job.id)


def evaluate(workdir: Path, on_event: Any) -> None:
    """What a session leaves of an evaluation of the base."""
    figure = {"mean": 0.5, "low": 0.4, "high": 0.6, "prompts": 1}
    found = {"scores": {"shapes": figure}, "by_tag": {}, "diversities": {"distance": figure}, "diversity_ratio": None}
    (workdir / "evaluation").mkdir()
    prompt = {"prompt": "a", "tag": "", "scores": {"shapes": [0.5]}, "diversity": 1.0, "vendi": None}
    (workdir / "evaluation/step-0.json").write_text(json.dumps({"step": 0, **found, "prompts": [prompt]}))
    on_event("evaluation", {"step": 0, "path": "evaluation/step-0.json", **found})


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("way", ["fails", "cancelled while held", "cancelled while paused"])
def test_a_job_that_was_evaluated_has_a_report_however_it_ends(tmp_path: Path, way: str, remote: bool) -> None:
    """Also when nobody held it: an idle worker writes it then, once."""
    store = f"file://{tmp_path}/artifacts" if not remote else f"memory://{tmp_path.name}"
    world = World(tmp_path, artifacts_url=store)
    job = world.store.create_job(spec(steps=1))

    def session(spec: TrainSpec, *, workdir: Path, on_event: Any, **rest: Any) -> Outcome:
        evaluate(workdir, on_event)
        if way == "fails":
            raise ValueError("a strange end")
        if way == "cancelled while held":
            return "cancelled"
        world.store.pause_job(job.id)
        return "paused"

    worker = world.worker(session)
    assert worker.train_next_job()
    if way == "cancelled while paused":
        assert "report" not in world.kinds(job.id)
        assert not worker.reports.write_next_unheld()
        world.store.cancel_job(job.id)
        worker = world.worker(session)
        assert worker.reports.write_next_unheld()
        assert not worker.reports.write_next_unheld()
    state = "failed" if way == "fails" else "cancelled"
    assert world.store.get_job(job.id).state == state
    assert world.kinds(job.id).count("report") == 1
    with worker.artifacts.open_file(f"jobs/{job.id}/export/report.html") as file:
        page = file.read().decode()
    assert f'class="status {state}"' in page
    assert ("a strange end" in page) == (way == "fails")
    assert not world.worker(session).reports.write_next_unheld()
    world.database.close()


def test_a_report_that_cannot_be_written_changes_nothing(world: World) -> None:
    job = world.store.create_job(spec(steps=1))

    def session(spec: TrainSpec, *, workdir: Path, on_event: Any, **rest: Any) -> Outcome:
        evaluate(workdir, on_event)
        (workdir / "export").write_text("no folder")
        return "cancelled"

    assert world.worker(session).train_next_job()
    assert world.store.get_job(job.id).state == "cancelled"
    assert "report" not in world.kinds(job.id)


class Unread(httpx.SyncByteStream):
    """A body that nobody may read: an endpoint's could be endless."""

    def __iter__(self) -> Iterator[bytes]:
        raise AssertionError("read")


def test_a_job_waits_for_a_required_reward_and_resumes_by_itself(world: World) -> None:
    """Paused with the reason; queued again only when /readyz of the endpoint answers."""
    ready = [False]
    asked: list[httpx.Request] = []

    def endpoint(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        if len(asked) == 1:
            raise httpx.ConnectError("refused")
        return httpx.Response(200 if ready[0] else 503, stream=Unread())

    def session(spec: TrainSpec, **rest: Any) -> Outcome:
        if not ready[0]:
            raise RewardUnavailable("reward shapes: timeout: no ranking within 60 s", reward="shapes")
        return train(spec, **rest)

    job = world.store.create_job(spec())
    worker = world.worker(session, transport=httpx.MockTransport(endpoint))

    def look() -> None:
        with world.store.database.writing() as transaction:
            transaction.execute(sa.update(JobRow).values(waiting_until=0.0))
        worker.requeue_waiting_jobs()

    assert worker.train_next_job()
    waiting = world.store.get_job(job.id)
    assert (waiting.state, waiting.waiting_reward) == ("paused", "shapes")
    assert "no ranking within 60 s" in str(waiting.waiting_reason)
    for _ in range(2):
        look()
        assert world.store.get_job(job.id).state == "paused"
    ready[0] = True
    look()
    assert world.store.get_job(job.id).state == "queued"
    assert worker.train_next_job()
    assert world.store.get_job(job.id).state == "succeeded"
    assert str(asked[0].url) == "http://127.0.0.1:8401/readyz"
    assert asked[0].headers["authorization"] == "Bearer secret"


def test_a_reward_whose_weight_was_taken_away_is_waited_for_no_more(world: World) -> None:
    """Though it stays away: the job goes on with the others."""
    rewards = (REWARD, RewardSpec(name="other", url="http://127.0.0.1:8402", weight=0.0))

    def session(spec: TrainSpec, **rest: Any) -> Outcome:
        raise RewardUnavailable("reward shapes: timeout: no ranking within 60 s", reward="shapes")

    def away(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    job = world.store.create_job(spec(rewards=rewards))
    worker = world.worker(session, transport=httpx.MockTransport(away))
    assert worker.train_next_job()
    assert world.store.get_job(job.id).waiting_reward == "shapes"
    for weights, state in (({"other": 1.0}, "paused"), ({"shapes": 0.0}, "queued")):
        world.store.change_weights(job.id, RewardWeights(weights=weights))
        with world.store.database.writing() as transaction:
            transaction.execute(sa.update(JobRow).values(waiting_until=0.0))
        worker.requeue_waiting_jobs()
        assert world.store.get_job(job.id).state == state


def test_a_lost_lease_ends_the_session_and_writes_nothing(world: World) -> None:
    """Another worker took the job while this one slept: its next event raises, and the job is the other's."""
    job = world.store.create_job(spec())
    other = []

    def session(spec: TrainSpec, *, on_event: Any, **rest: Any) -> Outcome:
        on_event("step", {"step": 1})
        with world.store.database.writing() as transaction:
            transaction.execute(sa.update(JobRow).values(lease_expires=0.0))
        other.append(world.store.claim_job("other", 60))
        with pytest.raises(LeaseLost):
            on_event("step", {"step": 2})
        raise LeaseLost("lost")

    assert world.worker(session).train_next_job()
    assert world.kinds(job.id)[-2:] == ["lease_expired", "running"]
    assert world.store.get_job(job.id).state == "running"
    assert other[0] is not None
    assert world.store.renew_lease(other[0], 60) == "run"


def test_heartbeats_keep_a_job_longer_than_its_lease(world: World) -> None:
    """A step that takes many lease lengths loses nothing."""
    world.settings.lease_s = 0.6

    def session(spec: TrainSpec, *, control: Any, **rest: Any) -> Outcome:
        for _ in range(20):
            time.sleep(0.1)
            assert world.store.claim_job("thief", 60) is None
        assert control() == "run"
        return "succeeded"

    job = world.store.create_job(spec())
    world.worker(session).train_next_job()
    assert world.store.get_job(job.id).state == "succeeded"


def test_a_remote_store_gets_checkpoints_and_gives_the_newest_back(tmp_path: Path) -> None:
    """On an fsspec URL: files are copied at each checkpoint, fetched by who resumes, and pruned with its own."""
    world = World(tmp_path, artifacts_url="memory://test-worker")

    def session(spec: TrainSpec, *, workdir: Path, on_event: Any, **rest: Any) -> Outcome:
        found = sorted(path.relative_to(workdir).as_posix() for path in workdir.rglob("*") if path.is_file())
        if not found:
            train(spec.model_copy(update={"steps": 4}), workdir=workdir, on_event=on_event, **rest)
            return "paused"
        assert found == ["checkpoint-2/state.json", "checkpoint-4/state.json"]
        shutil.rmtree(workdir / "checkpoint-2")  # pruned
        return "succeeded"

    job = world.store.create_job(spec(checkpoint_every=2))
    worker = world.worker(session)
    worker.train_next_job()
    stored = [artifact.path for artifact in worker.artifacts.list_files(f"jobs/{job.id}")]
    assert "checkpoint-2/state.json" in stored
    assert "checkpoint-4/complete" in stored
    worker.train_next_job()
    assert world.store.get_job(job.id).state == "succeeded"
    stored = [artifact.path for artifact in worker.artifacts.list_files(f"jobs/{job.id}")]
    assert stored == ["checkpoint-4/complete", "checkpoint-4/state.json"]
    world.database.close()


def test_a_worker_that_lost_its_lease_copies_nothing(tmp_path: Path) -> None:
    """An object store knows no fence: the lease is proven before files go there, also at the very end."""
    world = World(tmp_path, artifacts_url="memory://test-worker-stale")

    def session(spec: TrainSpec, *, workdir: Path, on_event: Any, **rest: Any) -> Outcome:
        (workdir / "samples").mkdir()
        (workdir / "samples" / "step-1.png").write_bytes(b"stale")
        with world.store.database.writing() as transaction:
            transaction.execute(sa.update(JobRow).values(lease_expires=0.0))
        assert world.store.claim_job("other", 60) is not None
        with pytest.raises(LeaseLost):
            on_event("samples", {"step": 1, "path": "samples/step-1.png"})
        return "succeeded"

    job = world.store.create_job(spec())
    worker = world.worker(session)
    assert worker.train_next_job()
    assert worker.artifacts.list_files(f"jobs/{job.id}") == []
    assert world.store.get_job(job.id).state == "running"
    world.database.close()


class Hiccuping(MemoryFileSystem):
    """A store whose first writes fail, each with what another client raises."""

    protocol = "hiccup"
    errors: ClassVar[list[Exception]] = []

    def put_file(self, *args: Any, **kwargs: Any) -> None:
        if self.errors:
            raise self.errors.pop()
        super().put_file(*args, **kwargs)


def test_a_brief_failure_of_the_store_is_survived(tmp_path: Path) -> None:
    """Files are copied again while the lease holds; clients of object stores raise errors of their own."""
    fsspec.register_implementation("hiccup", Hiccuping, clobber=True)
    Hiccuping.errors[:] = [OSError("503 Slow Down"), RuntimeError("endpoint connection error")]
    world = World(tmp_path, artifacts_url="hiccup://test-worker-hiccup")
    job = world.store.create_job(spec(checkpoint_every=3))
    worker = world.worker(train)
    worker.train_next_job()
    assert Hiccuping.errors == []
    assert world.store.get_job(job.id).state == "succeeded"
    stored = {artifact.path for artifact in worker.artifacts.list_files(f"jobs/{job.id}")}
    assert stored == {f"checkpoint-{step}/{name}" for step in (3, 6) for name in ("state.json", "complete")}
    world.database.close()


@pytest.mark.parametrize("store", ["folder", "memory://test-worker-data"])
def test_an_offline_job_is_brought_its_data(tmp_path: Path, store: str) -> None:
    """A pairs file, or what another job recorded, as a path that lasts as long as the session; rewards may be gone."""
    world = World(tmp_path, artifacts_url=str(tmp_path / store) if store == "folder" else store)
    artifacts = ArtifactStore(world.settings.artifacts_url, tmp_path / "scratch")
    for path in ("files/file-1.jsonl", "jobs/ftjob-1/candidates/step-0.safetensors"):
        (tmp_path / "file").write_text(path)
        artifacts.write_file(path, tmp_path / "file")
    seen: list[Path] = []

    def session(spec: TrainSpec, *, data: Path, **rest: Any) -> Outcome:
        held = data if spec.pairs_file else data / "step-0.safetensors"
        assert held.read_text().endswith(held.name)
        seen.append(held)
        return "succeeded"

    gone = (RewardSpec(name="gone"),)
    for source in ({"pairs_file": "file-1", "method": {"type": "sft"}}, {"replay_job": "ftjob-1"}):
        job = world.store.create_job(spec(**{"rewards": gone, "candidates": 16, **source}))
        world.worker(session).train_next_job()
        assert world.store.get_job(job.id).state == "succeeded", world.store.get_job(job.id).error
    assert [path.exists() for path in seen] == [store == "folder"] * 2
    assert all(not ranker.rewards for ranker in world.rankers)
    job = world.store.create_job(spec(replay_job="ftjob-2", candidates=16))
    world.worker(session).train_next_job()
    error = world.store.get_job(job.id).error
    assert error is not None
    assert error["param"] == "replay_job"
    world.database.close()


def test_recorded_candidates_are_sent_once_and_not_fetched_again(tmp_path: Path) -> None:
    """They are large, and a resume has no use for them: a later checkpoint sends only what is new or was rewritten."""
    sent: list[str] = []

    class Counting(MemoryFileSystem):
        protocol = "counting"

        def put_file(self, lpath: str, rpath: str, *args: Any, **kwargs: Any) -> None:
            sent.append(Path(rpath).name)
            super().put_file(lpath, rpath, *args, **kwargs)

    fsspec.register_implementation("counting", Counting, clobber=True)
    artifacts = ArtifactStore("counting://test-worker-candidates", tmp_path / "scratch")
    artifacts.checkout_job("j")
    workdir = artifacts.job_workdir("j")
    for step in (0, 1):
        (workdir / "candidates").mkdir(exist_ok=True)
        (workdir / f"candidates/step-{step}.safetensors").write_text(f"step {step}")
        (workdir / f"checkpoint-{step + 1}").mkdir()
        (workdir / f"checkpoint-{step + 1}/state.json").write_text("{}")
        artifacts.sync_job("j", workdir)
    assert sorted(sent) == ["state.json", "state.json", "step-0.safetensors", "step-1.safetensors"]
    artifacts.checkout_job("j")
    assert sorted(path.name for path in workdir.iterdir()) == ["checkpoint-1", "checkpoint-2"]
    (workdir / "candidates").mkdir()
    (workdir / "candidates/step-1.safetensors").write_text("again!")
    artifacts.sync_job("j", workdir)
    with artifacts.open_file("jobs/j/candidates/step-1.safetensors") as file:
        assert file.read() == b"again!"
    with artifacts.open_file("jobs/j/candidates/step-0.safetensors") as file:
        assert file.read() == b"step 0"


def test_a_sync_completes_cut_copies_and_spares_later_checkpoints(tmp_path: Path) -> None:
    """Without its mark a checkpoint is sent whole, same sizes or not; what is newer than ours is another worker's."""
    artifacts = ArtifactStore("memory://test-worker-sync", tmp_path / "scratch")

    def stored(step: int, content: str, *names: str) -> None:
        for name in names:
            (tmp_path / "file").write_text(content)
            artifacts.write_file(f"jobs/j/checkpoint-{step}/{name}", tmp_path / "file")

    stored(1, "old", "state.json", "complete")
    stored(4, "cut", "state.json")
    stored(6, "new", "state.json", "complete")
    workdir = tmp_path / "workdir"
    for step in (3, 4):
        (workdir / f"checkpoint-{step}").mkdir(parents=True)
        (workdir / f"checkpoint-{step}" / "state.json").write_text("own")
    artifacts.sync_job("j", workdir)
    found = {file.path: file for file in artifacts.list_files("jobs/j")}
    assert set(found) == {f"checkpoint-{step}/{name}" for step in (3, 4, 6) for name in ("state.json", "complete")}
    for step, content in ((3, b"own"), (4, b"own"), (6, b"new")):
        with artifacts.open_file(f"jobs/j/checkpoint-{step}/state.json") as file:
            assert file.read() == content


def test_heartbeats_hold_a_job_while_its_files_are_fetched_and_a_broken_store_fails_it(tmp_path: Path) -> None:
    """A fetch longer than the lease loses nothing; a fetch that breaks in another way fails the job, no worker."""
    world = World(tmp_path, lease_s=0.6)
    job = world.store.create_job(spec())
    worker = world.worker(train)

    class Store(ArtifactStore):
        away = False

        def checkout_job(self, job_id: str) -> None:
            if self.away:
                raise OSError("the bucket does not answer")
            time.sleep(1.5)
            assert world.store.claim_job("thief", 60) is None
            super().checkout_job(job_id)

    worker.artifacts = store = Store(world.settings.artifacts_url, tmp_path / "work")
    assert worker.train_next_job()
    assert world.store.get_job(job.id).state == "succeeded"
    store.away = True
    job = world.store.create_job(spec())
    assert worker.train_next_job()
    failed = world.store.get_job(job.id)
    assert failed.state == "failed"
    assert failed.error is not None
    assert failed.error["message"] == "OSError: the bucket does not answer"
    world.database.close()


# ---- the process ----------------------------------------------------------------------------------------------------

PROCESS = """
import importlib.util, sys
sys.modules["torch"] = None  # an import of it would fail
spec = importlib.util.spec_from_file_location("worker_tests", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules["worker_tests"] = module
spec.loader.exec_module(module)
from dipole_trainer.worker import process
process.run_worker(
    session=lambda spec, **rest: module.train(spec, **rest, pause_s=0.05),
    make_ranker=lambda settings, job_id, rewards, on_ranked, cache: module.FakeRanker(rewards, on_ranked),
)
"""


def start(world: World, log: Path, **more: str) -> subprocess.Popen[bytes]:
    settings = world.settings
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("DIPOLE_")},
        "DIPOLE_HOME": str(settings.home), "DIPOLE_DATABASE_URL": settings.database_url,
        "DIPOLE_ARTIFACTS_URL": settings.artifacts_url, **more,
    }  # fmt: skip
    with log.open("ab") as file:
        return subprocess.Popen([sys.executable, "-c", PROCESS, __file__], env=environment, stdout=file, stderr=file)


def until(condition: Callable[[], bool], process: subprocess.Popen[bytes], log: Path, timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def test_sigterm_hands_the_job_over_and_kill_9_lets_it_be_taken(world: World, tmp_path: Path) -> None:
    """Three workers, one job: the first is asked to stop, the second is killed, the third finishes.

    SIGTERM leaves a checkpoint at the very step and the job in the queue; kill -9 costs the lease's time and the steps
    since the last checkpoint. Every step from 1 to the end is reported.
    """
    log = tmp_path / "worker.log"
    job = world.store.create_job(spec(steps=60, checkpoint_every=10))
    processes = []
    try:
        first = start(world, log, DIPOLE_LEASE_S="60")
        processes.append(first)
        until(lambda: world.store.get_job(job.id).step >= 3, first, log)
        check_health(world.settings)
        first.send_signal(signal.SIGTERM)
        assert first.wait(60) == 0, log.read_text()
        stopped = world.store.get_job(job.id)
        assert (stopped.state, stopped.worker) == ("queued", None)
        assert world.store.list_checkpoints(job.id)[0][0].step == stopped.step

        second = start(world, log, DIPOLE_LEASE_S="2")
        processes.append(second)
        until(lambda: world.store.get_job(job.id).step >= 23, second, log)
        second.kill()
        second.wait()
        assert world.store.get_job(job.id).state == "running"

        third = start(world, log, DIPOLE_LEASE_S="60")
        processes.append(third)
        until(lambda: world.store.get_job(job.id).state == "succeeded", third, log)
        third.send_signal(signal.SIGINT)
        assert third.wait(60) == 0
    finally:
        for process in processes:
            process.kill()
            process.wait()
    events = world.store.events_since(job.id, 0)
    resumed = [event.data["step"] for event in events if event.kind == "resumed"]
    assert resumed == [stopped.step, 20]
    assert "lease_expired" in [event.kind for event in events]
    assert {event.data["step"] for event in events if event.kind == "step"} == set(range(1, 61))
    assert world.store.get_job(job.id).fence == 3


def test_health_is_a_fresh_file(world: World) -> None:
    """The probe fails before a worker has started and when it has been silent too long."""
    with pytest.raises(WorkerUnhealthy, match="no worker"):
        check_health(world.settings)
    worker = world.worker(train)
    worker.stop_requested.set()
    worker.train_next_job()
    threading.Timer(0.3, worker.stop_requested.set).start()
    worker.stop_requested.clear()
    worker.run()
    check_health(world.settings)
    os.utime(world.settings.worker_health_file, (0, 0))
    with pytest.raises(WorkerUnhealthy, match="no worker"):
        check_health(world.settings)
