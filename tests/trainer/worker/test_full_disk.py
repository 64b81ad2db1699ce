"""A disk that is full for a while costs a job a while: it pauses, says so, and goes on by itself from its checkpoint.

The disk is full at the seam, where a session or the store writes, and once for real: a worker process whose files may
not grow (RLIMIT_FSIZE), until its parent lets them.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import resource
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import sqlalchemy as sa
import structlog
from fsspec.implementations.memory import MemoryFileSystem
from safetensors import SafetensorError

from dipole.client.endpoint import Endpoint
from dipole.errors import Conflict, DependencyUnavailable, is_storage_full
from dipole.settings import PlatformSettings
from dipole_trainer.database.engine import Database, upgrade_database
from dipole_trainer.database.tables import JobRow
from dipole_trainer.distributed.failures import exception_from_json, exception_to_json
from dipole_trainer.jobs.leases import MAX_FRUITLESS_RESUMES
from dipole_trainer.jobs.store import JobStore
from dipole_trainer.ranking.known_answers import KnownAnswersRanker
from dipole_trainer.registry.rewards import RewardRegistry
from dipole_trainer.spec import PromptSpec, RewardSpec, TrainSpec
from dipole_trainer.worker.worker import Outcome, Worker

FULL = OSError(errno.ENOSPC, "No space left on device")
SPEC = TrainSpec(prompts=(PromptSpec(prompt="x"),), rewards=(RewardSpec(name="shapes"),), steps=4, checkpoint_every=1)


def train(
    spec: TrainSpec, *, workdir: Path, on_event: Any, control: Any, write: Callable[[Path, bytes], Any], **_: Any
) -> Outcome:
    """A session that trains nothing: a step, a checkpoint, and so on from the last one."""
    done = max((int(path.name.split("-")[1]) for path in workdir.glob("checkpoint-*")), default=0)
    while done < spec.steps:
        if control() != "run":
            return "paused"
        done += 1
        on_event("step", {"step": done, "steps": spec.steps, "loss": 0.1})
        write(workdir / f".checkpoint-{done}.partial", b"weights" * 1000)
        (workdir / f"checkpoint-{done}").mkdir()
        (workdir / f".checkpoint-{done}.partial").rename(workdir / f"checkpoint-{done}" / "state.json")
        on_event("checkpoint", {"step": done, "path": f"checkpoint-{done}"})
    return "succeeded"


class World:
    """A platform in a folder, whose session writes through `write`."""

    def __init__(self, folder: Path, **more: Any) -> None:
        self.settings = PlatformSettings(
            home=folder, database_url=f"sqlite:///{folder}/jobs.db", models_dir=folder / "models",
            **{"artifacts_url": str(folder / "artifacts"), **more},
        )  # fmt: skip
        upgrade_database(self.settings.database_url)
        self.database = Database(self.settings.database_url)
        self.store = JobStore(self.database)
        RewardRegistry(self.database).put_reward("shapes", Endpoint(url="http://127.0.0.1:8401"))
        self.write: Callable[[Path, bytes], Any] = Path.write_bytes
        self.worker = Worker(self.settings, self.session, lambda *_: KnownAnswersRanker(), idle_s=0.01)  # type: ignore[arg-type,return-value]

    def session(self, spec: TrainSpec, **rest: Any) -> Outcome:
        return train(spec, **rest, write=lambda path, data: self.write(path, data))

    def make_waits_due(self) -> None:
        with self.database.writing() as session:
            session.execute(sa.update(JobRow).where(JobRow.waiting_until.is_not(None)).values(waiting_until=0.0))

    def told(self, job_id: str) -> list[str]:
        return [event.message for event in self.store.events_since(job_id, 0) if event.kind in ("paused", "queued")]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.worker.database.close()
    made.database.close()


def full_at(step: int, error: Exception) -> Callable[[Path, bytes], Any]:
    def write(path: Path, data: bytes) -> None:
        path.write_bytes(data[:10])
        if f"checkpoint-{step}." in path.name:
            raise error

    return write


def wrapped(cause: Exception) -> Exception:
    error = RuntimeError("it could not be saved")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EFBIG, "File too large"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        wrapped(FULL),
        DependencyUnavailable("the artifact store is full", retry_after=1),
    ],
    ids=repr,
)
def test_a_full_disk_pauses_a_job_which_goes_on_from_its_checkpoint(world: World, error: Exception) -> None:
    job = world.store.create_job(SPEC)
    world.write = full_at(3, error)
    assert world.worker.train_next_job()
    paused = world.store.get_job(job.id)
    assert (paused.state, paused.error, paused.waiting_reward) == ("paused", None, None)
    assert str(error) in str(paused.waiting_reason)
    assert "goes on by itself when its files can be stored" in world.told(job.id)[-1]
    assert not world.worker.train_next_job()
    world.make_waits_due()
    world.worker.requeue_waiting_jobs()
    assert world.store.get_job(job.id).state == "queued"
    assert "files can be stored again" in world.told(job.id)[-1]
    world.write = Path.write_bytes
    assert world.worker.train_next_job()
    assert world.store.get_job(job.id).state == "succeeded"
    steps = [event.data["step"] for event in world.store.events_since(job.id, 0) if event.kind == "step"]
    assert steps == [1, 2, 3, 3, 4], "it went on from the checkpoint at step 2"


def test_a_job_waits_for_room_for_its_report(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has trained all its steps, and ends once the report is written."""
    written: list[str] = []

    def write_report(workdir: Path, *_: Any, **more: Any) -> None:
        written.append(more["status"])
        if len(written) == 1:
            raise wrapped(FULL)

    monkeypatch.setattr("dipole_trainer.reports.report.write_report", write_report)
    job = world.store.create_job(SPEC)
    assert world.worker.train_next_job()
    assert world.store.get_job(job.id).state == "paused"
    world.make_waits_due()
    world.worker.requeue_waiting_jobs()
    assert world.worker.train_next_job()
    assert (world.store.get_job(job.id).state, written) == ("succeeded", ["succeeded"] * 2)


@pytest.mark.parametrize(
    ("error", "event"), [(wrapped(FULL), "report_not_written"), (ValueError("a fault of ours"), "report_failed")]
)
def test_a_failed_job_ends_without_a_report_that_cannot_be_written(
    world: World, error: Exception, event: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is a warning in a sentence; what else goes wrong there is an error with its traceback."""

    def write_report(*_: Any, **more: Any) -> None:
        raise error

    monkeypatch.setattr("dipole_trainer.reports.report.write_report", write_report)
    world.write = full_at(2, ValueError("it failed"))
    job = world.store.create_job(SPEC)
    with structlog.testing.capture_logs() as lines:
        assert world.worker.train_next_job()
    assert world.store.get_job(job.id).state == "failed"
    (told,) = [line for line in lines if line["event"].startswith("report")]
    assert (told["event"], "exc_info" in told) == (event, event == "report_failed")


def test_a_job_stays_paused_while_there_is_no_room(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe writes where the job does, and asks for what its newest checkpoint takes."""
    job = world.store.create_job(SPEC)
    world.write = full_at(3, FULL)
    world.worker.train_next_job()

    def usage(free: int) -> Callable[[Path], Any]:
        return lambda path: type("Usage", (), {"free": free})

    for free, expected in ((0, "paused"), (2**30, "queued")):
        world.make_waits_due()
        monkeypatch.setattr("dipole_trainer.storage.artifacts.shutil.disk_usage", usage(free))
        world.worker.requeue_waiting_jobs()
        assert world.store.get_job(job.id).state == expected


def test_a_disk_that_only_seems_to_have_room_is_not_tried_for_ever(world: World) -> None:
    """As with a reward that says it is ready and ranks nothing: after a few resumes without a step it says so."""

    def session(spec: TrainSpec, **_: Any) -> Outcome:
        raise FULL

    world.worker._session = session
    job = world.store.create_job(SPEC)
    for _ in range(MAX_FRUITLESS_RESUMES + 1):
        assert world.worker.train_next_job()
        world.make_waits_due()
        world.worker.requeue_waiting_jobs()
    assert world.store.get_job(job.id).state == "paused"
    assert "mend the cause, then resume the job" in world.told(job.id)[-1]


def test_a_caller_may_pause_cancel_or_resume_what_waits_for_room(world: World) -> None:
    job = world.store.create_job(SPEC)
    world.write = full_at(3, FULL)
    world.worker.train_next_job()
    assert world.store.pause_job(job.id).waiting_reason is None
    world.make_waits_due()
    world.worker.requeue_waiting_jobs()
    assert world.store.get_job(job.id).state == "paused", "a caller's pause is not ended by room"
    assert world.store.resume_job(job.id).state == "queued"
    assert world.store.cancel_job(job.id).state == "cancelled"


# ---- the store is full or away, the database is full ----------------------------------------------------------------


def test_a_store_that_stays_away_pauses_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was a failure once the lease was over, whatever had been trained."""
    world = World(tmp_path, lease_s=0.4, artifacts_url="memory://waits")
    fsspec.filesystem("memory").store.clear()
    job = world.store.create_job(SPEC)
    with monkeypatch.context() as away:

        def fail(*_: Any, **__: Any) -> None:
            raise RuntimeError("the bucket is away")

        away.setattr(MemoryFileSystem, "put_file", fail)
        assert world.worker.train_next_job()
        paused = world.store.get_job(job.id)
        assert paused.state == "paused"
        assert "the artifact store (DIPOLE_ARTIFACTS_URL) does not answer" in str(paused.waiting_reason)
        away.setattr(MemoryFileSystem, "pipe_file", fail)
        assert not world.worker.artifacts.has_room(job.id)
    assert world.worker.artifacts.has_room(job.id)
    world.make_waits_due()
    world.worker.requeue_waiting_jobs()
    assert world.worker.train_next_job()
    assert world.store.get_job(job.id).state == "succeeded"
    world.worker.database.close()
    world.database.close()


@pytest.mark.parametrize("name", ["append_event", "add_checkpoint", "finish_job", "wait_for_storage", "renew_lease"])
def test_a_database_that_is_full_for_a_moment_loses_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Steps, checkpoints and how a job ended are written again while the lease holds."""
    real, calls = getattr(world.worker.store, name), itertools.count()

    def write(*args: Any, **options: Any) -> Any:
        if next(calls) == 0:
            raise sa.exc.OperationalError("INSERT", {}, sqlite3.OperationalError("database or disk is full"))
        return real(*args, **options)

    monkeypatch.setattr(world.worker.store, name, write)
    job = world.store.create_job(SPEC)
    world.write = full_at(3, FULL) if name == "wait_for_storage" else Path.write_bytes
    assert world.worker.train_next_job()
    assert next(calls) > 0
    assert world.store.get_job(job.id).state == ("paused" if name == "wait_for_storage" else "succeeded")


def test_a_full_disk_is_told_between_processes(tmp_path: Path) -> None:
    """Of several processes any may meet it; the first decides what becomes of the job."""
    away = DependencyUnavailable("the artifact store is full", retry_after=7)
    found = exception_from_json(json.loads(json.dumps(exception_to_json(away))), "process 1")
    assert isinstance(found, DependencyUnavailable)
    assert found.retry_after == 7
    assert is_storage_full(exception_from_json(exception_to_json(FULL), "process 1"))


# ---- heartbeats -----------------------------------------------------------------------------------------------------


def test_heartbeats_outlive_a_health_file_that_cannot_be_written(tmp_path: Path) -> None:
    """A session longer than the lease, on a disk where nothing can be written: the job is still ours at its end."""
    world = World(tmp_path, lease_s=0.4)
    world.settings.worker_health_file.mkdir()  # as root, what else cannot be written

    def session(spec: TrainSpec, *, control: Any, **_: Any) -> Outcome:
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            control()
            time.sleep(0.05)
        return "succeeded"

    world.worker._session = session
    job = world.store.create_job(SPEC)
    assert world.worker.train_next_job()
    assert world.store.get_job(job.id).state == "succeeded"
    world.worker.database.close()
    world.database.close()


def test_an_idle_worker_outlives_it_too(world: World) -> None:
    world.settings.worker_health_file.mkdir()
    threading.Timer(0.2, world.worker.stop_requested.set).start()
    world.worker.run()


# ---- for real -------------------------------------------------------------------------------------------------------

PROCESS = """
import importlib.util, sys
sys.modules["torch"] = None  # an import of it would fail
spec = importlib.util.spec_from_file_location("full_disk_tests", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules["full_disk_tests"] = module
spec.loader.exec_module(module)
from pathlib import Path
from dipole_trainer.worker import process
process.run_worker(
    session=lambda spec, **rest: module.train(spec, **rest, write=lambda path, data: path.write_bytes(data * 500)),
    make_ranker=lambda *_: module.KnownAnswersRanker(),
)
"""
LIMIT_BYTES = 2 * 2**20  # of a file; a checkpoint of PROCESS has 3.5 MB


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_worker_process_whose_files_cannot_grow_goes_on_when_they_can(world: World) -> None:
    """The kernel refuses the writes, the process lives, and the job ends without anybody's doing."""
    settings = world.settings
    variables = {
        "HOME": settings.home,
        "DATABASE_URL": settings.database_url,
        "ARTIFACTS_URL": settings.artifacts_url,
        "MODELS_DIR": settings.models_dir,
    }
    environment = {**os.environ, **{f"DIPOLE_{name}": str(value) for name, value in variables.items()}}
    job = world.store.create_job(SPEC)
    process = subprocess.Popen([sys.executable, "-c", PROCESS, __file__], env=environment, stderr=subprocess.PIPE)
    try:
        _, most = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (LIMIT_BYTES, most))
        until(lambda: any("File too large" in message for message in world.told(job.id)))
        assert process.poll() is None
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (most, most))
        until(lambda: world.store.get_job(job.id).state == "succeeded")
    finally:
        process.terminate()
        _, log = process.communicate(timeout=30)
    assert process.returncode == 0, log.decode()


# ---- failed jobs ----------------------------------------------------------------------------------------------------


def test_a_failed_job_with_a_checkpoint_is_resumed_by_its_caller(world: World) -> None:
    """Whatever it failed of; without a checkpoint there is nothing to go on from."""
    job = world.store.create_job(SPEC)
    world.write = full_at(1, ValueError("a bug"))
    world.worker.train_next_job()
    with pytest.raises(Conflict, match="without a checkpoint to go on from"):
        world.store.resume_job(job.id)
    job = world.store.create_job(SPEC)
    world.write = full_at(3, ValueError("a bug"))
    world.worker.train_next_job()
    failed = world.store.get_job(job.id)
    assert failed.state == "failed"
    assert failed.finished_at is not None
    resumed = world.store.resume_job(job.id)
    assert (resumed.state, resumed.error, resumed.finished_at) == ("queued", None, None)
    world.write = Path.write_bytes
    assert world.worker.train_next_job()
    assert world.store.get_job(job.id).state == "succeeded"
    with pytest.raises(Conflict, match="has succeeded and cannot be resumed"):
        world.store.resume_job(job.id)
