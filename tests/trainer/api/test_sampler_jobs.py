"""With a sampler beside the API, each a process: jobs are planned over REST, and one starts from a checkpoint."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import load
from typer.testing import CliRunner

from dipole.cli import app as cli
from dipole.protocol import images
from dipole_trainer import generators
from dipole_trainer.checkpoints import resume_state
from dipole_trainer.database.engine import Database
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.jobs.leases import Claim
from dipole_trainer.jobs.store import JobStore
from dipole_trainer.spec import TrainSpec
from dipole_trainer.storage import job_layout
from dipole_trainer.weights.lora_formats import LORA_WEIGHTS_FILE

from . import test_images_api
from .test_images_api import JOB, PROMPT, Platform, wait_for

platform = test_images_api.platform
JOBS = "/v1/fine_tuning/jobs"
PLAN = "/v1/fine_tuning/plan"


# ---- plans ----------------------------------------------------------------------------------------------------------


def post_plan(platform: Platform, job: dict[str, Any], query: str = "") -> httpx.Response:
    return httpx.post(f"{platform.url}{PLAN}{query}", json=job, timeout=600, trust_env=False)


def test_a_plan_is_what_the_command_prints(platform: Platform, tmp_path: Path) -> None:
    """`POST /v1/fine_tuning/plan`, `dipole plan --api` and `dipole plan` say the same, of the body that makes a job."""
    answer = post_plan(platform, JOB, "?device=h100&device=rtx-4090&chunk_size=4")
    assert answer.status_code == 200, answer.text
    path = tmp_path / "job.json"
    path.write_text(json.dumps(JOB))
    words = ["plan", str(path), "--device", "h100", "--device", "rtx-4090", "--chunk", "4", "--json"]
    for more in ([], ["--api", platform.url]):
        printed = CliRunner().invoke(cli, [*words, *more])
        assert printed.exit_code == 0, printed.output
        assert json.loads(printed.stdout) == answer.json()["data"]
    assert [plan["device"] for plan in answer.json()["data"]] == ["h100", "rtx-4090"]
    table = CliRunner().invoke(cli, [*words[:-1], "--api", platform.url])
    assert "tiny-turbo: one update of 192 images" in table.stdout
    assert answer.json()["remarks"]


def test_a_plan_knows_what_the_api_knows(platform: Platform) -> None:
    """A file's lines make the steps of `n_epochs`; a fine-tuned model costs what its base costs; the rest may lack."""
    file = httpx.post(
        f"{platform.url}/v1/files", files={"file": ("p.txt", b"a\nb\nc\nd\n")}, data={"purpose": "fine-tune"}
    ).json()["id"]
    tuned = platform.job["fine_tuned_model"]
    body = {"training_file": file, "candidates": 4, "hyperparameters": {"n_epochs": 3, "batch_size": 2}}
    (plan,) = post_plan(platform, body, "?device=a100").json()["data"]
    assert plan["images_per_update"] == 8
    assert plan["hours"][0] == pytest.approx(plan["seconds_per_update"][0] * 6 / 3600)
    (other,) = post_plan(platform, {**body, "model": tuned}, "?device=a100").json()["data"]
    assert other == plan


def test_a_plan_that_was_made_is_not_made_again(platform: Platform) -> None:
    """The same body in another order is answered without a sampler; another body is not."""
    log = platform.folder / "sampler.log"

    def answered() -> int:
        return log.read_text().count("order_answered")

    body, before = {**JOB, "candidates": 6}, answered()
    first = post_plan(platform, body).json()
    wait_for(lambda: answered() == before + 1, "the sampler's word")
    assert post_plan(platform, dict(reversed(body.items()))).json() == first
    assert answered() == before + 1
    assert post_plan(platform, {**body, "candidates": 7}).json() != first


@pytest.mark.parametrize(
    ("body", "query", "field"),
    [
        ({"model": "no-such"}, "", "model"),
        ({"model": "ftckpt-none"}, "", "model"),
        ({"candidates": 1}, "", "candidates"),
        ({}, "?device=abacus", "device"),
        ({}, "?devise=h100", "devise"),
        ({"training_file": "file-none"}, "", "training_file"),
    ],
)
def test_what_cannot_be_planned_names_its_field(platform: Platform, body: Any, query: str, field: str) -> None:
    """Whoever finds it: the API, or the sampler."""
    refused = post_plan(platform, body, query)
    assert refused.status_code == 422, refused.text
    assert refused.json()["errors"][0]["field"] == field


# ---- a job that starts from another's checkpoint --------------------------------------------------------------------


def play_worker(platform: Platform) -> tuple[Claim, JobStore]:
    database = Database(platform.environment["DIPOLE_DATABASE_URL"])
    store = JobStore(database)
    claim = store.claim_job("worker", 60)
    assert claim is not None
    return claim, store


def generator_of(platform: Platform, spec: TrainSpec, job: str, step: int | None) -> OneStepGenerator:
    workdir = Path(platform.environment["DIPOLE_ARTIFACTS_URL"]) / job_layout.job_path(job)
    generator = generators.build_generator(spec, models_dir=Path("none"), initial=workdir / job_layout.INITIAL_FOLDER)
    if step is not None:
        resume_state.load_checkpoint(workdir / job_layout.checkpoint_name(step), generator)
    return generator


@torch.no_grad()
def draw(generator: OneStepGenerator) -> np.ndarray[Any, Any]:
    return generator.decode_images(generator(generator.draw_noise([11]), PROMPT))[0].astype(int)


def test_a_job_starts_from_every_name_of_a_model(platform: Platform) -> None:
    """The base is what the job shows as `model`; it has a copy of the weights; images are its own."""
    tuned, (first, _) = platform.job["fine_tuned_model"], platform.checkpoints
    earlier = draw(generator_of(platform, platform.claim.spec, platform.claim.job_id, 2))
    for name, step in ((tuned, 2), (f"{tuned}:ckpt-step-1", 1), (first, 1)):
        answer = httpx.post(f"{platform.url}{JOBS}", json={**JOB, "model": name, "suffix": "next"}, timeout=60)
        assert answer.status_code == 200, answer.text
        job = answer.json()
        assert job["model"] == "tiny-turbo"
        started = job["initial_checkpoint"]
        assert started["id"] in platform.checkpoints
        assert (started["step"], started["job"]) == (step, platform.claim.job_id)
        claim, store = play_worker(platform)
        assert claim.job_id == job["id"]
        initial = Path(platform.environment["DIPOLE_ARTIFACTS_URL"]) / f"jobs/{job['id']}/initial"
        assert job_layout.files_below(initial) == [
            "0/unet_lora/adapter_config.json", "0/unet_lora/adapter_model.safetensors"
        ]  # fmt: skip
        if step == 2:
            assert np.abs(draw(generator_of(platform, claim.spec, job["id"], None)) - earlier).max() <= 1
            generator = generator_of(platform, claim.spec, job["id"], None)
            save_trained(platform, claim, generator)
            store.add_checkpoint(claim, 1, "checkpoint-1", {}, kept=[1])
            store.finish_job(claim, "succeeded")
            check_leavings(platform, claim, store.get_job(job["id"]).id)
        else:
            store.finish_job(claim, "failed")
        store.database.close()


def save_trained(platform: Platform, claim: Claim, generator: OneStepGenerator) -> None:
    """Checkpoint-1 of a job that started from another: weights that are surely not its start's."""
    state = {"model": "tiny-turbo", "base": resume_state.fingerprint_base(generator)}
    for parameter in generator.parameters():
        parameter.data += 0.05
    workdir = Path(platform.environment["DIPOLE_ARTIFACTS_URL"]) / job_layout.job_path(claim.job_id)
    resume_state.save_checkpoint(workdir, 1, generator, torch.optim.AdamW(generator.parameters()), state)


def check_leavings(platform: Platform, claim: Claim, job_id: str) -> None:
    """Images by its name, and a LoRA to download that holds the earlier job's part; a third job has both parts."""
    url = f"{platform.url}{JOBS}/{job_id}"
    name = httpx.get(url).json()["fine_tuned_model"]
    assert name.startswith("ft:tiny-turbo:dipole:next:")
    expected = draw(generator_of(platform, claim.spec, job_id, 1))
    found = images.decode_image(platform.draw(model=name, seed=11)[0], "image/png").astype(int)
    assert np.abs(found - expected).max() <= 1
    (checkpoint,) = httpx.get(f"{url}/checkpoints").json()["data"]
    packed = httpx.get(f"{platform.url}/{checkpoint['download']}").content
    lora = load(zipfile.ZipFile(io.BytesIO(packed)).read(LORA_WEIGHTS_FILE))
    assert {tensor.shape[0] for key, tensor in lora.items() if ".lora_A." in key} == {8}  # two of rank 4
    paths = [each["path"] for each in httpx.get(f"{url}/artifacts").json()["data"]]
    assert not any(path.startswith("initial/") for path in paths)
    third = httpx.post(f"{platform.url}{JOBS}", json={**JOB, "model": name}, timeout=60).json()
    copied = Path(platform.environment["DIPOLE_ARTIFACTS_URL"]) / f"jobs/{third['id']}/initial"
    assert sorted(path.name for path in copied.iterdir()) == ["0", "1"]
    httpx.post(f"{platform.url}{JOBS}/{third['id']}/cancel").raise_for_status()


def test_a_start_that_is_not_there_makes_no_job(platform: Platform) -> None:
    """Pruned files, a name of nobody, a field that only answers have; nothing is left in the store."""
    artifacts = Path(platform.environment["DIPOLE_ARTIFACTS_URL"])
    store = artifacts / job_layout.job_path(platform.claim.job_id)
    before = sorted(path.name for path in (artifacts / "jobs").iterdir())
    away = store / "checkpoint-2.away"
    shutil.move(store / "checkpoint-2", away)
    tuned = platform.job["fine_tuned_model"]
    try:
        for body, field in (
            ({"model": tuned}, "model"),
            ({"model": "ft:tiny-turbo:dipole:mine:00000000"}, "model"),
            ({"model": tuned, "revision": "v1"}, "revision"),
            ({"initial_checkpoint": {"id": "x", "name": "x", "job": "x", "step": 1}}, "initial_checkpoint"),
        ):
            refused = httpx.post(f"{platform.url}{JOBS}", json={**JOB, **body}, timeout=60)
            assert refused.status_code == 422, refused.text
            assert refused.json()["errors"][0]["field"] == field
    finally:
        shutil.move(away, store / "checkpoint-2")
    assert sorted(path.name for path in (artifacts / "jobs").iterdir()) == before
