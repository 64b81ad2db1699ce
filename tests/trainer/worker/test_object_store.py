"""A job whose files lie in a real object store, which fills up or goes away."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from ...s3_server import FULL, running_s3
from .test_full_disk import SPEC, World


@pytest.mark.parametrize("trouble", ["full", "away"])
def test_a_job_outlives_its_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str) -> None:
    """Over HTTP to an S3 server that takes no more files, or answers nothing, from the third step on; the machine that
    goes on has none of the files.
    """
    with running_s3(monkeypatch) as s3:
        world = World(tmp_path, lease_s=0.5, artifacts_url="s3://artifacts/dipole")
        job = world.store.create_job(SPEC)
        ended = ExitStack()

        def write(path: Path, data: bytes) -> None:
            path.write_bytes(data)
            if "checkpoint-3." in path.name and trouble == "away":
                ended.enter_context(s3.away())
            elif "checkpoint-3." in path.name:
                s3.full = FULL

        world.write = write
        assert world.worker.train_next_job()
        paused = world.store.get_job(job.id)
        assert (paused.state, paused.error) == ("paused", None)
        said = "is full" if trouble == "full" else "does not answer"
        assert f"the artifact store (DIPOLE_ARTIFACTS_URL) {said}" in str(paused.waiting_reason)
        world.make_waits_due()
        world.worker.requeue_waiting_jobs()
        assert world.store.get_job(job.id).state == "paused"
        ended.close()
        s3.full, world.write = None, Path.write_bytes
        shutil.rmtree(tmp_path / "work")
        world.make_waits_due()
        world.worker.requeue_waiting_jobs()
        assert world.worker.train_next_job()
        assert world.store.get_job(job.id).state == "succeeded"
        steps = [event.data["step"] for event in world.store.events_since(job.id, 0) if event.kind == "step"]
        assert steps == [1, 2, 3, 3, 4], "it went on from the checkpoint at step 2"
        stored = [each.path for each in world.worker.artifacts.list_files(f"jobs/{job.id}")]
        assert [path for path in stored if path.endswith("complete")] == [
            f"checkpoint-{n}/complete" for n in range(1, 5)
        ]
        world.worker.database.close()
        world.database.close()
