"""A scheduler's single step: from the last timestep, where there is nothing but noise, to the image.

Not every configuration begins there. `leading` and `linspace` spacing, which many pipelines have and Euler has by
default, put a single step at timestep 0 or 1, where there is next to no noise to remove: the noise comes out again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import diffusers
from torch import Tensor
from torch.nn import functional

from dipole.errors import InvalidInput
from dipole_trainer.weights.distillations import Distillation

MIN_SHARE_OF_LAST = 0.95  # LCM's own schedule may end a few timesteps short of the last
MAX_LIKENESS_TO_NOISE = 0.999  # cosine; even a network with random weights leaves less of its noise


@dataclass(frozen=True)
class OneStepSchedule:
    """A scheduler that is set to its single step; `change` says what was set for it, if anything."""

    scheduler: Any
    change: str | None = None


def make_one_step_schedule(scheduler: Any) -> OneStepSchedule:
    """The scheduler as it is, or with trailing spacing where only that makes its single step begin at the last
    timestep. Raises InvalidInput where nothing does.
    """
    if not hasattr(scheduler, "init_noise_sigma") or not hasattr(scheduler, "scale_model_input"):
        raise InvalidInput(
            f"model: its scheduler, {type(scheduler).__name__}, is none of diffusion, such as flow matching's: give it "
            "the scheduler of a one-step model, such as EulerDiscreteScheduler with timestep_spacing 'trailing'",
            field="model",
        )
    found = _single_step(scheduler)
    if _begins_at_last(scheduler, found):
        return OneStepSchedule(scheduler)
    spacing = scheduler.config.get("timestep_spacing")
    if spacing is not None:
        trailing = type(scheduler).from_config(scheduler.config, timestep_spacing="trailing")
        if _begins_at_last(trailing, _single_step(trailing)):
            return OneStepSchedule(
                trailing,
                f"the model's scheduler ({type(scheduler).__name__}, timestep_spacing {spacing!r}) begins a single "
                f"step at timestep {_timestep_names(found)}, where there is hardly any noise: "
                "it is used with timestep_spacing 'trailing'",
            )
    raise InvalidInput(
        f"model: one step of its scheduler, {type(scheduler).__name__}, is timestep {_timestep_names(found)} and not "
        f"the last, {scheduler.config.num_train_timesteps - 1}: give it the scheduler of a one-step model, such as "
        "EulerDiscreteScheduler with timestep_spacing 'trailing'",
        field="model",
    )


def make_distilled_schedule(scheduler: Any, distillation: Distillation) -> OneStepSchedule:
    """The scheduler that a distilled model is sampled with, made from its base's config."""
    made = getattr(diffusers, distillation.scheduler).from_config(scheduler.config, **distillation.scheduler_settings)
    if distillation.timestep is None:
        made.set_timesteps(1)
    else:
        made.set_timesteps(timesteps=[distillation.timestep])
    settings = "".join(f", {name} {value!r}" for name, value in distillation.scheduler_settings.items())
    return OneStepSchedule(
        made,
        f"with {distillation.file} the model draws in one step as published: {distillation.scheduler}{settings}, "
        f"timestep {_timestep_names(made.timesteps.tolist())}",
    )


def check_sample_is_no_noise(sample: Tensor, noise: Tensor) -> None:
    """Raise InvalidInput where a sample (1, c, h, w) is, up to its size, the noise that it was made from."""
    likeness = functional.cosine_similarity(sample.flatten().float(), noise.flatten().float(), dim=0).abs().item()
    if likeness > MAX_LIKENESS_TO_NOISE:
        raise InvalidInput(
            "model: one step gives back the noise that it began with: this pipeline does not draw in one step",
            field="model",
        )


def _single_step(scheduler: Any) -> list[float]:
    """The timesteps of one step: several where the scheduler makes more of it, none where its spacing is unknown."""
    try:
        scheduler.set_timesteps(1)
    except ValueError:
        return []
    return [float(timestep) for timestep in scheduler.timesteps]


def _begins_at_last(scheduler: Any, timesteps: list[float]) -> bool:
    return len(timesteps) == 1 and timesteps[0] >= MIN_SHARE_OF_LAST * (scheduler.config.num_train_timesteps - 1)


def _timestep_names(timesteps: list[float]) -> str:
    return ", ".join(f"{timestep:g}" for timestep in timesteps) or "none"
