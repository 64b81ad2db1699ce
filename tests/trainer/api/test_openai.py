"""The official `openai` client, unmodified, over a real socket: files, jobs, events, checkpoints, images, errors.

The first tests ask a lone API; the last goes through the whole life of a job on a platform that trains and draws.
"""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from dipole.stack.stack import LocalReward, Stack
from dipole_trainer.database.engine import Database
from dipole_trainer.jobs.store import JobStore

PROMPTS = b'{"prompt": "a red square"}\n{"prompt": "two blue circles"}\n'
METHOD: Any = {"type": "drpo", "drpo": {"positives": 2, "negatives": 2}}
EXTRA = {"rewards": [{"name": "shapes"}], "candidates": 6, "steps": 10, "allow_unready": True}
COLOURFULNESS = LocalReward("colourfulness", "dipole_rewards.rewards.colourfulness:Colourfulness")
TRAINED: dict[str, Any] = {
    "rewards": [{"name": "colourfulness"}], "steps": 1000, "candidates": 4, "prompts_per_step": 1,
    "optimizer": {"lr": 0.01}, "checkpoint_every": 1,
}  # fmt: skip


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


def test_a_part_without_a_file_name_is_told_as_text(api: Any) -> None:
    """What `curl -F file=prompts.jsonl` sends, its @ forgotten."""
    told = httpx.post(f"{api.url}/v1/files", data={"purpose": "fine-tune"}, files={"file": (None, "prompts.jsonl")})
    assert told.status_code == 422
    assert "curl -F file=@PATH" in told.json()["detail"]
    assert told.json()["errors"][0]["field"] == "file"


def test_a_file_that_expires(client: openai.OpenAI) -> None:
    """What the client is told is when the file goes."""
    file = client.files.create(
        file=("p.jsonl", PROMPTS), purpose="fine-tune", expires_after={"anchor": "created_at", "seconds": 7200}
    )
    assert file.expires_at == file.created_at + 7200
    assert client.files.retrieve(file.id).expires_at == file.expires_at


def test_azure_s_client_asks_with_its_version(api: Any) -> None:
    """`api-version` stands in every query, and is no misspelt field of a list."""
    with openai.AzureOpenAI(
        base_url=f"{api.url}/v1", api_key="none", api_version="2025-04-01-preview", max_retries=0, timeout=60
    ) as client:
        file = client.files.create(file=("p.jsonl", PROMPTS), purpose="fine-tune")
        assert file.id in {each.id for each in client.files.list(limit=2)}
        job = create(client)
        assert job.id in {each.id for each in client.fine_tuning.jobs.list(limit=2)}
        assert list(client.fine_tuning.jobs.list_events(job.id))
        assert "tiny-turbo" in {each.id for each in client.models.list()}
        client.fine_tuning.jobs.cancel(job.id)


def test_models(client: openai.OpenAI, store: JobStore) -> None:
    """Bases, then a job's checkpoints and the model it ended with; each is retrieved by its name, and draws by it."""
    for job in client.fine_tuning.jobs.list():
        if job.status == "queued":
            client.fine_tuning.jobs.cancel(job.id)
    job = create(client, suffix="mine")
    claim = store.claim_job("worker", 60)
    assert claim is not None
    for step in (1, 2):
        store.add_checkpoint(claim, step, f"checkpoint-{step}", {}, kept=[1, 2])
    store.finish_job(claim, "succeeded")
    tuned = client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id))
    models = {each.id: each for each in client.models.list()}
    assert next(iter(models)) == "tiny-turbo"
    for name in (tuned, *(each.fine_tuned_model_checkpoint for each in checkpoints)):
        assert name is not None
        assert client.models.retrieve(name) == models[name]
        assert models[name].owned_by == "dipole"
        assert models[name].created >= job.created_at
    assert client.models.retrieve(checkpoints[0].id).created == models[tuned or ""].created
    assert client.models.retrieve("org/name").owned_by == "system"
    for name in ("gpt-4o-mini", "ft:tiny-turbo:dipole:mine:00000000", "ftckpt-none", "a/b/c"):
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve(name)


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
    assert [event.object for event in events] == ["fine_tuning.job.event"] * 6  # two are warnings
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
    claim = store.claim_job("worker", 60)
    assert claim is not None
    assert claim.job_id == job.id
    for step in (1, 2, 3):
        store.append_event(claim, "step", {"step": step, "loss": 0.5, "eta_s": 60.0})
        store.add_checkpoint(claim, step, f"checkpoint-{step}", {"train_loss": 0.5}, kept=[1, 2, 3])
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(job.id, limit=1))
    assert [checkpoint.step_number for checkpoint in checkpoints] == [3, 2, 1]
    assert checkpoints[0].metrics.train_loss == 0.5
    metrics = [event for event in client.fine_tuning.jobs.list_events(job.id) if event.type == "metrics"]
    assert metrics[0].data == {"step": 3, "loss": 0.5, "eta_s": 60.0}
    running = client.fine_tuning.jobs.retrieve(job.id)
    assert running.status == "running"
    assert running.estimated_finish is not None
    store.finish_job(claim, "succeeded")
    tuned = client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model
    assert tuned is not None
    assert tuned.startswith("ft:tiny-turbo:dipole:")


def test_errors_show_their_sentence_and_field(client: openai.OpenAI) -> None:
    """A refused request raises the client's own error with our message and the field as `param`."""
    file = client.files.create(file=("p.jsonl", PROMPTS), purpose="fine-tune")
    with pytest.raises(openai.UnprocessableEntityError, match="unknown model") as caught:
        client.fine_tuning.jobs.create(
            model="gpt-4o-mini", training_file=file.id, extra_body={"rewards": [{"name": "shapes"}]}
        )
    assert (caught.value.param, caught.value.code) == ("model", "invalid_input")
    with pytest.raises(openai.UnprocessableEntityError, match="line 1") as caught:
        client.files.create(file=("p.jsonl", b"{}\n"), purpose="fine-tune")
    assert caught.value.param == "file[1]"
    with pytest.raises(openai.UnprocessableEntityError, match="rewards"):
        client.fine_tuning.jobs.create(model="tiny-turbo", training_file=file.id)
    with pytest.raises(openai.NotFoundError, match="ftjob-none"):
        client.fine_tuning.jobs.retrieve("ftjob-none")


# ---- a whole life -------------------------------------------------------------------------------------------------


@pytest.fixture
def platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[openai.OpenAI]:
    """Redis, a reward, a rank worker, a trainer worker, a sampler and the API, each a process; a client of them."""
    with (
        Stack(tmp_path, [COLOURFULNESS], sampler=True) as stack,
        openai.OpenAI(base_url=f"{stack.api_url}/v1", api_key="none", timeout=120) as client,
    ):
        yield client


def until(client: openai.OpenAI, job: str, reached: Callable[[Any], bool]) -> Any:
    """The job, once it is where it should be."""
    deadline = time.monotonic() + 120
    while not reached(found := client.fine_tuning.jobs.retrieve(job)):
        assert found.status != "failed", found.error
        assert time.monotonic() < deadline, (found.status, found.step)
        time.sleep(0.1)
    return found


def test_a_job_s_whole_life_and_what_it_draws(platform: openai.OpenAI) -> None:
    """Upload, create, events, pause, resume, cancel, checkpoints; base and checkpoint draw apart, seeds repeat."""
    jobs, file = platform.fine_tuning.jobs, platform.files.create(file=("p.jsonl", PROMPTS), purpose="fine-tune")
    job = jobs.create(model="tiny-turbo", training_file=file.id, method=METHOD, extra_body=TRAINED).id
    until(platform, job, lambda found: found.step >= 1)
    jobs.pause(job)
    paused = until(platform, job, lambda found: found.status == "paused").step
    jobs.resume(job)
    until(platform, job, lambda found: found.step > paused)
    jobs.cancel(job)
    until(platform, job, lambda found: found.status == "cancelled")
    said = [event.message for event in jobs.list_events(job, limit=100)][::-1]
    assert said[0].startswith("Job created")
    assert said[-1].startswith("Job cancelled")
    assert any(line.startswith("Step 1/1000: training loss") for line in said)
    newest = jobs.checkpoints.list(job).data[0]
    assert newest.step_number > paused

    def draw(model: str, **more: Any) -> list[bytes]:
        answer = platform.images.generate(
            model=model, prompt="a red square", n=2, size="64x64", response_format="b64_json", **more
        )
        assert answer.data is not None
        return [base64.b64decode(image.b64_json or "") for image in answer.data]

    base, tuned = (draw(model, extra_body={"seed": 7}) for model in ("tiny-turbo", newest.fine_tuned_model_checkpoint))
    assert all(image.startswith(b"\x89PNG") for image in [*base, *tuned])
    assert len({*base, *tuned}) == 4
    assert draw(newest.id, extra_body={"seed": 7}) == tuned
    assert draw("tiny-turbo", extra_body={"seed": 8})[0] == base[1]
    with pytest.raises(openai.UnprocessableEntityError, match="give 256x256") as caught:
        platform.images.generate(model="tiny-turbo", prompt="a red square", size="256x512")  # type: ignore[call-overload]
    assert caught.value.param == "size"
    with pytest.raises(openai.UnprocessableEntityError, match="b64_json"):
        platform.images.generate(model="tiny-turbo", prompt="a red square", response_format="url")
