"""Tiny pipelines of every kind trained over REST by the same code, and what is refused."""

from __future__ import annotations

import io
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

from dipole.client.trainer_api import TrainerApiError
from dipole_trainer import generators
from dipole_trainer.checkpoints import resume_state
from dipole_trainer.generators import tiny_pipelines
from dipole_trainer.spec import GeneratorSpec

from ..one_step_families import add_lora, distance, draw_published, load_published

COLOURFULNESS = {"name": "colourfulness"}
CLASSES = {"sd": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}
FAMILIES = ("sana", "hyper-sdxl-lora", "sdxl-lightning")  # a transformer, a one-step LoRA, a U-Net that predicts x_0


@pytest.fixture(scope="module")
def models(platform: Any) -> Path:
    """The platform's models folder, with a tiny pipeline of each class."""
    folder = Path(platform.stack.home) / "models"
    kinds = (*CLASSES, *FAMILIES)
    for kind in kinds:
        tiny_pipelines.write_pipeline(folder / f"tiny-{kind}", kind)
    wait_until_seen(platform, *(f"tiny-{kind}" for kind in kinds))
    return folder


def wait_until_seen(platform: Any, *models: str) -> None:
    """A worker publishes within seconds what lies in its folder; a job on what it lacks is refused."""

    def is_seen() -> bool:
        (worker,) = platform.api.get("/v1/workers")["data"]
        return worker["models"].keys() >= set(models)

    platform.wait_for(is_seen, "the worker has seen the models")


def submit(platform: Any, model: str, **changes: Any) -> str:
    job: str = platform.submit(
        [COLOURFULNESS], **{"model": model, "features": {"type": "latents"}, "steps": 2, **changes}
    )
    return job


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
@pytest.mark.parametrize("tune", ["lora", "full"])
def test_a_pipeline_folder_is_trained_through_rest(platform: Any, models: Path, kind: str, tune: str) -> None:
    """By naming its folder. What leaves loads in a fresh pipeline of its class, and draws another image."""
    job = submit(platform, f"tiny-{kind}", tune=tune, resolution=72, precision="bf16" if tune == "lora" else "fp32")
    platform.until(job, "succeeded")
    assert [event["data"]["step"] for event in platform.events(job, "step")] == [1, 2]
    export = platform.folder(job) / "export"
    pipes = [_load(kind, models / f"tiny-{kind}"), _load(kind, models / f"tiny-{kind}")]
    if tune == "lora":
        pipes[1].load_lora_weights(str(export), weight_name="pytorch_lora_weights.safetensors")
    else:
        pipes[1] = _load(kind, export / "merged")
    base, tuned = (_latents(pipe) for pipe in pipes)
    assert not torch.equal(base, tuned)
    newest = platform.api.get(f"/v1/fine_tuning/jobs/{job}/checkpoints")["data"][0]
    packed = httpx.get(f"{platform.stack.api_url}/{newest['download']}", timeout=60).raise_for_status().content
    names = zipfile.ZipFile(io.BytesIO(packed)).namelist()
    lora = ["pytorch_lora_weights.safetensors", "adapter_config.json"]
    assert names == (lora if tune == "lora" else ["unet/diffusion_pytorch_model.safetensors"])


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_lora_of_three_updates_is_loaded_by_a_fresh_pipeline(platform: Any, models: Path, kind: str) -> None:
    """Of diffusers, set up as the family's model card says: it draws what the trained generator draws."""
    job = submit(platform, f"tiny-{kind}", steps=3, precision="fp32")
    platform.until(job, "succeeded")
    assert [event["data"]["step"] for event in platform.events(job, "step")] == [1, 2, 3]
    spec = GeneratorSpec(model=f"tiny-{kind}", lora={"rank": 4, "alpha": 4}, precision="fp32")
    generator = generators.build_generator(spec, models_dir=models)
    resume_state.load_checkpoint(platform.folder(job) / "checkpoint-3", generator)
    noise, prompt = generator.draw_noise([5, 6]), "a blue square"
    pipe = load_published(kind, models / f"tiny-{kind}")
    base = draw_published(pipe, kind, noise, prompt)
    assert distance(base, generator.draw_reference(noise, prompt)) < 1e-5
    add_lora(pipe, kind, platform.folder(job) / "export")
    tuned = draw_published(pipe, kind, noise, prompt)
    assert distance(tuned, generator(noise, prompt).detach()) < 1e-5
    assert distance(tuned, base) > 1e-4
    webui = list((platform.folder(job) / "export").glob("*_webui.safetensors"))
    assert len(webui) == (0 if kind == "sana" else 1)


def test_a_space_that_a_transformer_lacks_is_refused_when_the_job_is_created(platform: Any, models: Path) -> None:
    """The worker has said of what kind the model is."""
    with pytest.raises(TrainerApiError, match="teacher_unet reads the blocks of a U-Net") as refused:
        submit(platform, "tiny-sana", features={"type": "teacher_unet"})
    assert refused.value.http_status == 422


def _load(kind: str, folder: Path) -> Any:
    pipe = CLASSES[kind].from_pretrained(str(folder), local_files_only=True)  # type: ignore[attr-defined]
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _latents(pipe: Any) -> torch.Tensor:
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    found: torch.Tensor = pipe(
        "a red circle", num_inference_steps=1, guidance_scale=0.0, latents=noise, output_type="latent"
    ).images
    return found


def test_weights_that_are_not_here_are_refused_with_the_command_that_fetches_them(platform: Any) -> None:
    """`sd-turbo` and feature spaces may be named without their weights; the worker has said what it can load."""
    for model, features, command in (
        ("sd-turbo", {}, "dipole models fetch sd-turbo`"),
        ("tiny-sd", {"features": {"type": "dinov2"}}, "dipole models fetch dinov2`"),
    ):
        with pytest.raises(TrainerApiError, match=re.escape(command)) as refused:
            submit(platform, model, **features)
        assert refused.value.http_status == 422


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"method": {"type": "ppo"}}, "method.type"),
        ({"method": {"type": "dpo", "drpo": {}}}, "method.drpo"),
        ({"method": {"type": "drpo", "drpo": {"positives": 3, "negatives": 2}}}, "method.drpo.positives"),
        ({"method": {"type": "grpo", "grpo": {"anchors": 9}}}, "method.grpo.anchors"),
        ({"resolution": 65}, "resolution"),
        ({"model": "no-such-model"}, "model"),
        ({"model": "../tiny-sd"}, "model"),
        ({"features": {"type": "vgg"}}, "features.type"),
        ({"replay_job": "ftjob-none"}, "replay_job"),
    ],
)
def test_a_job_that_cannot_work_is_refused_by_field(platform: Any, changes: dict[str, Any], field: str) -> None:
    """A 4xx that names the field; no job is made."""
    before = platform.api.get("/v1/fine_tuning/jobs")["data"]
    body = {
        "model": "tiny-turbo", "prompts": [{"prompt": "a red circle"}], "rewards": [COLOURFULNESS], "candidates": 4,
        "method": {"type": "drpo", "drpo": {"positives": 2, "negatives": 2}}, **changes,
    }  # fmt: skip
    answer = httpx.post(f"{platform.stack.api_url}/v1/fine_tuning/jobs", json=body, timeout=30)
    assert answer.status_code in (400, 404, 422), answer.text
    assert field in answer.text
    assert platform.api.get("/v1/fine_tuning/jobs")["data"] == before


def test_a_resolution_that_the_model_cannot_draw_fails_the_job(platform: Any, models: Path) -> None:
    """LoRA targets too: what only the model's own shapes can tell is told by the worker, by field."""
    job = submit(platform, "tiny-sd", lora={"rank": 4, "target_modules": ["to_nowhere"]})
    assert platform.until(job, "failed")["error"]["param"] == "lora.target_modules"


def test_a_broken_row_of_a_pairs_file_is_named(platform: Any) -> None:
    """And nothing of the file is kept."""
    before = platform.api.get("/v1/files")["data"]
    rows = b'{"prompt": "a", "chosen": "bm8=", "rejected": "bm8="}\n'
    answer = httpx.post(
        f"{platform.stack.api_url}/v1/files",
        files={"file": ("pairs.jsonl", io.BytesIO(rows))}, data={"purpose": "fine-tune"}, timeout=30,
    )  # fmt: skip
    assert answer.status_code in (400, 422)
    assert "file[1]" in answer.text
    assert "chosen" in answer.text
    assert platform.api.get("/v1/files")["data"] == before


def test_a_checkpoint_of_another_base_is_not_gone_on_from(
    platform: Any, models: Path, referee: Callable[..., Any]
) -> None:
    """A base that was exchanged under a paused job fails it by field; its checkpoint stays as it was."""
    tiny_pipelines.write_pipeline(models / "changing", "sd", seed=1)
    wait_until_seen(platform, "changing")
    judge = referee()
    judge.hold(after=3)
    job: str = platform.submit(
        [{"name": "referee", "url": judge.url, "timeout_s": 300}], model="changing", features={"type": "latents"},
        checkpoint_every=1,
    )  # fmt: skip
    platform.wait_for(judge.held.is_set, "the reward to be asked")
    platform.order(job, "pause")
    platform.until(job, "paused")
    kept = platform.adapter(job, 1)
    shutil.rmtree(models / "changing")
    tiny_pipelines.write_pipeline(models / "changing", "sd", seed=2)
    judge.hold(after=None)
    platform.order(job, "resume")
    failed = platform.until(job, "failed")
    assert failed["error"]["param"] == "model"
    assert "other weights" in failed["error"]["message"]
    assert platform.adapter(job, 1) == kept
