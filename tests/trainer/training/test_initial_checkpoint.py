"""A job that starts from what another trained: that, merged, is its base; what leaves it fits the named model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from dipole.errors import InvalidInput
from dipole_trainer import generators
from dipole_trainer.checkpoints import resume_state
from dipole_trainer.comparison.model_loader import ModelLoader
from dipole_trainer.generators.one_step import TINY_TURBO, OneStepGenerator
from dipole_trainer.ranking.in_process import InProcessRanker
from dipole_trainer.registry.model_names import ModelResolver
from dipole_trainer.spec import FeaturesSpec, TrainSpec
from dipole_trainer.storage import job_layout
from dipole_trainer.training import session

NOWHERE = Path("nowhere")
PROMPT = "a photo of a red square"
ADAPTER = job_layout.adapter_weights_file("unet")


def make_spec(**changes: Any) -> TrainSpec:
    base: dict[str, Any] = {
        "model": "tiny-turbo", "prompts": [{"prompt": PROMPT}], "rewards": [{"name": "bright"}], "steps": 2,
        "candidates": 4, "prompts_per_step": 1, "checkpoint_every": 1, "optimizer": {"lr": 2e-3},
        "method": {"drpo": {"positives": 2, "negatives": 2}}, "lora": {"rank": 4, "alpha": 8.0},
        "samples": {"prompts": 0},
    }  # fmt: skip
    return TrainSpec.model_validate({**base, **changes})


def start_from(job: str, step: int, **changes: Any) -> TrainSpec:
    started = {"id": f"ftckpt-{job}-{step}", "name": f"ft:tiny-turbo:dipole::{job}", "job": job, "step": step}
    return make_spec(initial_checkpoint=started, **changes)


def brightness(prompt: str, images: np.ndarray, metadata: Any) -> list[float]:
    return [float(value) for value in images.astype(np.float64).mean((1, 2, 3))]


def train(spec: TrainSpec, workdir: Path, control: Any = lambda: "run") -> Path:
    """The job's newest checkpoint."""
    session.run_session(
        spec, job_id="job", workdir=workdir, models_dir=NOWHERE, control=control,
        ranker=InProcessRanker({"bright": brightness}, spec.rewards), on_event=lambda kind, data: None,
    )  # fmt: skip
    trained = job_layout.newest_checkpoint(workdir)
    assert trained is not None
    return trained


def put_initial(workdir: Path, *checkpoints: Path) -> None:
    """As the API does when it creates a job."""
    for index, checkpoint in enumerate(checkpoints):
        target = workdir / job_layout.INITIAL_FOLDER / str(index)
        for name in job_layout.weight_files(job_layout.files_below(checkpoint)):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(checkpoint / name, target / name)


def trained_generator(spec: TrainSpec, checkpoint: Path) -> OneStepGenerator:
    initial = checkpoint.parent / job_layout.INITIAL_FOLDER
    generator = generators.build_generator(spec, models_dir=NOWHERE, initial=initial)
    resume_state.load_checkpoint(checkpoint, generator, base=resume_state.fingerprint_base(generator))
    return generator


@torch.no_grad()
def draw(generator: OneStepGenerator) -> torch.Tensor:
    return generator(generator.draw_noise([1, 2, 3]), PROMPT)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of a job on tiny-turbo itself."""
    return train(make_spec(), tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def second(first: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of a job that started from it, with other layers and another rank."""
    workdir = tmp_path_factory.mktemp("second")
    put_initial(workdir, first)
    return train(SECOND, workdir)


SECOND = start_from("first", 2, lora={"rank": 2, "alpha": 3.0, "target_modules": ["to_q", "to_v"]})


@pytest.mark.parametrize("tune", ["lora", "full"])
def test_it_draws_first_what_the_earlier_job_drew_last(first: Path, tmp_path: Path, tune: str) -> None:
    """Its first samples and its frozen base are the earlier job's last samples, to float32's last bits."""
    expected = draw(trained_generator(make_spec(), first))
    put_initial(tmp_path, first)
    spec = start_from("first", 2, tune=tune)
    generator = generators.build_generator(spec, models_dir=NOWHERE, initial=tmp_path / job_layout.INITIAL_FOLDER)
    noise = generator.draw_noise([1, 2, 3])
    assert torch.allclose(draw(generator), expected, atol=1e-5)
    assert torch.allclose(generator.draw_reference(noise, PROMPT), expected, atol=1e-5)
    plain = draw(generators.build_generator(make_spec(), models_dir=NOWHERE))
    assert (plain - expected).abs().max() > 1e-3


def test_a_full_checkpoint_is_started_from_to_the_bit(tmp_path: Path) -> None:
    """Every weight of the earlier job is the base, whatever is trained on it; the export is the whole pipeline."""
    spec = make_spec(tune="full", steps=1)
    whole = train(spec, tmp_path / "whole")
    put_initial(tmp_path / "next", whole)
    later = start_from("whole", 1, steps=1)
    expected = draw(trained_generator(spec, whole))
    initial = tmp_path / "next" / job_layout.INITIAL_FOLDER
    assert torch.equal(draw(generators.build_generator(later, models_dir=NOWHERE, initial=initial)), expected)
    trained = train(later, tmp_path / "next")
    exported = sorted(path.name for path in (tmp_path / "next/export").iterdir())
    assert exported == ["README.md", "merged"]
    card = (tmp_path / "next/export/README.md").read_text()
    assert "step 1 of job whole" in card
    assert '"merged"  # of this folder' in card
    pipe = StableDiffusionPipeline.from_pretrained(str(tmp_path / "next/export/merged"), safety_checker=None)
    assert torch.allclose(pipeline_draw(pipe), draw(trained_generator(later, trained)), atol=1e-4)


def pipeline_draw(pipe: StableDiffusionPipeline) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    noise = generators.build_generator(make_spec(), models_dir=NOWHERE).draw_noise([1, 2, 3])
    drawn: torch.Tensor = pipe(
        PROMPT, num_inference_steps=1, guidance_scale=0.0, latents=noise, num_images_per_prompt=3, output_type="latent"
    ).images
    return drawn


def test_the_exported_lora_is_of_both_jobs(second: Path) -> None:
    """On tiny-turbo itself it draws what the job drew last: layers, ranks and alphas of both differ."""
    export = second.parent / "export"
    pipe = StableDiffusionPipeline.from_pretrained(str(TINY_TURBO), dtype=torch.float32, safety_checker=None)
    pipe.load_lora_weights(str(export))
    assert torch.allclose(pipeline_draw(pipe), draw(trained_generator(SECOND, second)), atol=1e-4)
    card = (export / "README.md").read_text()
    assert "ft:tiny-turbo:dipole::first, step 2 of job first; the adapter holds that job's part too" in card


def test_a_third_job_stands_on_both(first: Path, second: Path, tmp_path: Path) -> None:
    """Its initial weights are merged in their order, and its base is what the second job drew last."""
    put_initial(tmp_path, first, second)
    initial = tmp_path / job_layout.INITIAL_FOLDER
    generator = generators.build_generator(start_from("second", 2), models_dir=NOWHERE, initial=initial)
    assert torch.allclose(draw(generator), draw(trained_generator(SECOND, second)), atol=1e-5)


def test_it_resumes_to_the_same_bits(first: Path, second: Path, tmp_path: Path) -> None:
    """Paused after its first step, in another process's place, it ends with the weights of the job that was not."""
    put_initial(tmp_path, first)
    halted = train(SECOND, tmp_path, lambda: "pause" if job_layout.checkpoint_steps(tmp_path) else "run")
    assert job_layout.step_of_checkpoint(halted.name) == 1
    ended = train(SECOND, tmp_path)
    one, other = load_file(ended / ADAPTER), load_file(second / ADAPTER)
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_a_checkpoint_is_of_its_start(first: Path, second: Path, tmp_path: Path) -> None:
    """Its state names where it started; it is refused on the plain base, and on another start."""
    state = json.loads((second / job_layout.TRAINING_STATE_FILE).read_text())
    assert state["initial_checkpoint"] == SECOND.model_dump(mode="json")["initial_checkpoint"]
    put_initial(tmp_path, first)
    for spec in (make_spec(lora=SECOND.lora), start_from("other", 2, lora=SECOND.lora)):
        generator = generators.build_generator(spec, models_dir=NOWHERE, initial=tmp_path / job_layout.INITIAL_FOLDER)
        with pytest.raises(InvalidInput, match="other weights"):
            resume_state.load_checkpoint(second, generator, base=resume_state.fingerprint_base(generator))


def test_an_evaluation_draws_with_its_start(second: Path, tmp_path: Path) -> None:
    """`dipole eval` of the checkpoint's folder draws what the job drew, and beside it the named model as it is."""
    nobody: Any = None
    models = ModelResolver(nobody, nobody, NOWHERE, tmp_path).resolve_models(["tiny-turbo", str(second)])
    loader = ModelLoader(models, FeaturesSpec(), models_dir=NOWHERE, device="cpu")
    loader.check_models()
    plain = generators.build_generator(make_spec(), models_dir=NOWHERE)
    for model, expected in zip(models, (draw(plain), draw(trained_generator(SECOND, second))), strict=True):
        with loader.loaded(model) as (generator, _):
            assert torch.allclose(draw(generator), expected, atol=1e-5)


def test_without_its_initial_weights_it_is_refused(tmp_path: Path) -> None:
    """It never trains on the plain base instead; what does not fit is named."""
    with pytest.raises(InvalidInput, match="are not in its folder"):
        generators.build_generator(SECOND, models_dir=NOWHERE, initial=tmp_path / "none")
    (tmp_path / "0").mkdir()
    (tmp_path / "0/notes.txt").touch()
    with pytest.raises(InvalidInput, match="holds no weights"):
        generators.build_generator(SECOND, models_dir=NOWHERE, initial=tmp_path)
