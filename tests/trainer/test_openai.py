"""The official `openai` client, unmodified, over a real socket: files, jobs, events, checkpoints, errors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from dipole_trainer.jobs import Database, JobStore

PROMPTS = b'{"prompt": "a red square"}\n{"prompt": "two blue circles"}\n'
METHOD: Any = {"type": "drpo", "drpo": {"positives": 2, "negatives": 2}}
EXTRA = {"rewards": [{"name": "shapes"}], "candidates": 6, "steps": 10}


@pytest.fixture
def client(api: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{api.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def store(api: Any) -> Iterator[JobStore]:
    """The server's own database, to play the worker."""
    database = Database(api.environment["DIPOLE_DATABASE_URL"])
    yield JobStore(database)
    database.close()


def create(client: openai.OpenAI, **more: Any) -> Any:
    file = client.files.create(file=("prompts.jsonl", PROMPTS), purpose="fine-tune")
    return client.fine_tuning.jobs.create(
        model="tiny-turbo", training_file=file.id, method=METHOD, extra_body=EXTRA, **more
    )


def test_files(client: openai.OpenAI) -> None:
    """Upload, retrieve, list through pages, read back, delete."""
    files = [client.files.create(file=(f"{n}.jsonl", PROMPTS), purpose="fine-tune") for n in range(3)]
    assert client.files.retrieve(files[0].id).filename == "0.jsonl"
    assert {file.id for file in client.files.list(limit=2, purpose="fine-tune")} >= {file.id for file in files}
    assert client.files.content(files[0].id).read() == PROMPTS
    assert client.files.delete(files[0].id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(files[0].id)


def test_a_job_s_life(client: openai.OpenAI) -> None:
    """Create with our method, list, retrieve, pause, resume, events, cancel."""
    job = create(client, seed=5, suffix="mine", metadata={"team": "a"})
    assert (job.object, job.status, job.seed) == ("fine_tuning.job", "queued", 5)
    assert job.method.drpo["positives"] == 2
    assert (job.steps, job.metadata) == (10, {"team": "a"})
    jobs = client.fine_tuning.jobs
    others = [create(client).id for _ in range(2)]
    assert [each.id for each in jobs.list(limit=1)][:3] == [*others[::-1], job.id]
    assert jobs.retrieve(job.id) == job
    assert str(jobs.pause(job.id).status) == "paused"
    assert jobs.resume(job.id).status == "queued"
    events = list(jobs.list_events(job.id, limit=1))
    assert [event.object for event in events] == ["fine_tuning.job.event"] * 4
    assert events[-1].message.startswith("Job created")
    assert jobs.cancel(job.id).status == "cancelled"
    with pytest.raises(openai.ConflictError, match="cancelled"):
        jobs.resume(job.id)


def test_checkpoints_and_metrics(client: openai.OpenAI, store: JobStore) -> None:
    """What a worker reports arrives as OpenAI's checkpoint and metrics objects."""
    for job in client.fine_tuning.jobs.list():
        if job.status == "queued":
            client.fine_tuning.jobs.cancel(job.id)
    job = create(client)
    claim = store.claim("worker", 60)
    assert claim is not None
    assert claim.job_id == job.id
    for step in (1, 2, 3):
        store.append_event(claim, "step", f"Step {step}", {"step": step, "loss": 0.5, "eta_s": 60.0})
        store.add_checkpoint(claim, step, f"checkpoint-{step}", {"train_loss": 0.5}, kept=[1, 2, 3])
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id, limit=1))
    assert [checkpoint.step_number for checkpoint in checkpoints] == [3, 2, 1]
    assert checkpoints[0].metrics.train_loss == 0.5
    metrics = [event for event in client.fine_tuning.jobs.list_events(job.id) if event.type == "metrics"]
    assert metrics[0].data == {"step": 3, "loss": 0.5, "eta_s": 60.0}
    running = client.fine_tuning.jobs.retrieve(job.id)
    assert running.status == "running"
    assert running.estimated_finish is not None
    store.finish(claim, "succeeded")
    tuned = client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model
    assert tuned is not None
    assert tuned.startswith("ft:tiny-turbo:dipole:")


def test_errors_show_their_sentence_and_field(client: openai.OpenAI) -> None:
    """A refused request raises the client's own error with our message and the field as `param`."""
    with pytest.raises(openai.UnprocessableEntityError, match="unknown model") as caught:
        client.fine_tuning.jobs.create(
            model="gpt-4o-mini", training_file="x", extra_body={"rewards": [{"name": "shapes"}]}
        )
    assert (caught.value.param, caught.value.code) == ("model", "invalid_input")
    with pytest.raises(openai.UnprocessableEntityError, match="line 1") as caught:
        client.files.create(file=("p.jsonl", b"{}\n"), purpose="fine-tune")
    assert caught.value.param == "file[1]"
    with pytest.raises(openai.UnprocessableEntityError, match="rewards"):
        client.fine_tuning.jobs.create(model="tiny-turbo", training_file="x")
    with pytest.raises(openai.NotFoundError, match="ftjob-none"):
        client.fine_tuning.jobs.retrieve("ftjob-none")
