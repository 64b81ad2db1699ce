"""One step starts at the last timestep: with the pipeline's own scheduler, with its spacing changed, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from dipole.errors import InvalidInput
from dipole_trainer import generators
from dipole_trainer.generators import tiny_pipelines
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.generators.one_step_schedule import (
    check_sample_is_no_noise,
    make_distilled_schedule,
    make_one_step_schedule,
)
from dipole_trainer.spec import GeneratorSpec
from dipole_trainer.weights.distillations import DISTILLED_MODELS, SD15, SDXL

NOISES = {name: tiny_pipelines.NOISE_SCHEDULE[name] for name in ("beta_start", "beta_end", "beta_schedule")}
# what a single step of theirs would be: timestep 0 or 1, 501 of DPM-Solver's
WRONG = [
    ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}),
    ("PNDMScheduler", {"skip_prk_steps": True, "timestep_spacing": "linspace"}),
    ("EulerDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("DDIMScheduler", {}),
    ("DDPMScheduler", {"timestep_spacing": "leading"}),
    ("DPMSolverMultistepScheduler", {"timestep_spacing": "leading"}),
    ("HeunDiscreteScheduler", {}),
    ("LMSDiscreteScheduler", {}),
    ("DDIMScheduler", {"timestep_spacing": "of another age"}),
]
RIGHT = [
    ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    ("LCMScheduler", {}),
    ("TCDScheduler", {}),
    ("DPMSolverMultistepScheduler", {}),
    ("UniPCMultistepScheduler", {}),
]


def make_scheduler(name: str, settings: dict[str, Any]) -> Any:
    return getattr(diffusers, name)(**NOISES, **settings)


@pytest.mark.parametrize(("name", "settings"), WRONG)
def test_a_step_that_begins_elsewhere_is_set_to_trailing_and_told(name: str, settings: dict[str, Any]) -> None:
    """One U-Net call at timestep 999, by the same class; the sentence names what was there."""
    schedule = make_one_step_schedule(make_scheduler(name, settings))
    schedule.scheduler.set_timesteps(1)
    assert schedule.scheduler.timesteps.tolist() == [999]
    assert type(schedule.scheduler).__name__ == name
    assert schedule.change is not None
    assert name in schedule.change
    assert "'trailing'" in schedule.change


# the schedulers of the bases that were distilled, as their folders have them
BASES = {
    SD15: ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1, "set_alpha_to_one": False}),
    SDXL: ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "steps_offset": 1}),
}


@pytest.mark.parametrize(
    ("name", "timestep"),
    [("hyper-sd15-lora", 999), ("hyper-sdxl-lora", 999), ("hyper-sdxl-unet", 800), ("sdxl-lightning", 999),
     ("dmd2-sdxl", 399)],
)  # fmt: skip
def test_a_distilled_model_begins_where_it_is_published_to(name: str, timestep: int) -> None:
    """Under the scheduler of its row, whatever the base's own is; the sentence says both."""
    distillation = DISTILLED_MODELS[name]
    schedule = make_distilled_schedule(make_scheduler(*BASES[distillation.base]), distillation)
    assert schedule.scheduler.timesteps.tolist() == [timestep]
    assert schedule.scheduler.config.beta_end == NOISES["beta_end"]
    assert schedule.change is not None
    assert f"{distillation.scheduler}" in schedule.change
    assert schedule.change.endswith(f"timestep {timestep}")


@pytest.mark.parametrize(("name", "settings"), RIGHT)
def test_a_step_that_begins_at_the_last_timestep_stays(name: str, settings: dict[str, Any]) -> None:
    """The very same scheduler, and nothing is told."""
    scheduler = make_scheduler(name, settings)
    schedule = make_one_step_schedule(scheduler)
    assert schedule.scheduler is scheduler
    assert schedule.change is None


@pytest.mark.parametrize(
    ("scheduler", "why"),
    [
        (lambda: diffusers.EDMEulerScheduler(), "EDMEulerScheduler, is timestep 1.09"),
        (lambda: make_scheduler("PNDMScheduler", {"skip_prk_steps": False}), "PNDMScheduler"),
        (lambda: diffusers.FlowMatchEulerDiscreteScheduler(), "FlowMatchEulerDiscreteScheduler, is none of diffusion"),
    ],
)
def test_what_never_begins_there_in_one_step_is_refused(scheduler: Any, why: str) -> None:
    with pytest.raises(InvalidInput, match=why) as caught:
        make_one_step_schedule(scheduler())
    assert caught.value.field == "model"


@pytest.mark.parametrize("name", ["PNDMScheduler", "DDIMScheduler", "DDPMScheduler", "EulerAncestralDiscreteScheduler"])
def test_a_pipeline_with_another_spacing_draws_as_with_trailing(models: Path, tmp_path: Path, name: str) -> None:
    """From its folder: x is what the pipeline with trailing spacing draws, and what it exports begins there too."""
    pipe = OneStepGenerator.pipeline_class.from_pretrained(str(models / "tiny-sd"))
    more = {"PNDMScheduler": {"skip_prk_steps": True}, "DDIMScheduler": {"clip_sample": False}}
    more["DDPMScheduler"] = more["DDIMScheduler"]
    pipe.scheduler = make_scheduler(name, {"timestep_spacing": "leading", "steps_offset": 1, **more.get(name, {})})
    pipe.save_pretrained(str(tmp_path / "odd"))
    generator = generators.build_generator(GeneratorSpec(model="odd"), models_dir=tmp_path)
    noise = generator.draw_noise([1, 2])
    x = generator(noise, "a red circle").detach()
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, timestep_spacing="trailing")
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        "a red circle", num_inference_steps=1, guidance_scale=0.0, latents=noise, num_images_per_prompt=2,
        output_type="latent",
    ).images  # fmt: skip
    assert (x - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    assert generator.schedule_change is not None
    generator.write_pipeline(generator.base_state(), tmp_path / "written")
    written = OneStepGenerator.pipeline_class.from_pretrained(str(tmp_path / "written"))
    assert written.scheduler.config.timestep_spacing == "trailing"


def test_a_pipeline_that_gives_its_noise_back_is_refused(models: Path, tmp_path: Path) -> None:
    """A U-Net that finds no noise: the sample is the noise, larger. A sample with a picture in it passes."""
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    check_sample_is_no_noise(14 * (noise - 0.9 * noise.roll(1)), noise)
    pipe = OneStepGenerator.pipeline_class.from_pretrained(str(models / "tiny-sd"))
    torch.nn.init.zeros_(pipe.unet.conv_out.weight)
    torch.nn.init.zeros_(pipe.unet.conv_out.bias)
    pipe.save_pretrained(str(tmp_path / "blind"))
    with pytest.raises(InvalidInput, match="gives back the noise") as caught:
        generators.build_generator(GeneratorSpec(model="blind"), models_dir=tmp_path)
    assert caught.value.field == "model"
