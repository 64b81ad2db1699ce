"""Generators: `build` finds the pipeline that a job's `model` names."""

from __future__ import annotations

from pathlib import Path

from dipole.errors import InvalidInput
from dipole_trainer.generators.one_step import TINY_TURBO, OneStepGenerator
from dipole_trainer.spec import TrainSpec

KNOWN = {"tiny-turbo": TINY_TURBO}


def build(spec: TrainSpec, *, device: str = "cpu") -> OneStepGenerator:
    """Load the model of a job: a known name, or a folder in diffusers format."""
    folder = KNOWN.get(spec.model, Path(spec.model))
    if not (folder / "model_index.json").is_file():
        raise InvalidInput(
            f"no pipeline at {folder} (model_index.json is missing); known names are {', '.join(KNOWN)}", field="model"
        )
    return OneStepGenerator.load(folder, spec.lora, device=device, precision=spec.precision, seed=spec.seed)
