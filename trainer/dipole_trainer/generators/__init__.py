"""Generators: `build` loads the pipeline that a job's `model` names, as the class that its model_index.json names."""

from __future__ import annotations

import json
from pathlib import Path

from dipole.errors import InvalidInput
from dipole_trainer import base_models
from dipole_trainer.generators.one_step import TINY_TURBO, OneStepGenerator
from dipole_trainer.generators.sdxl import SdxlGenerator
from dipole_trainer.spec import TrainSpec

KNOWN = {"tiny-turbo": TINY_TURBO}


def build(spec: TrainSpec, *, models_dir: Path, device: str = "cpu") -> OneStepGenerator:
    """Load the model of a job. Raises InvalidInput where it is not on this machine, or is no pipeline of ours."""
    located = base_models.locate(spec.model, models_dir, spec.revision)
    folder = KNOWN.get(located, Path(located))
    name = json.loads((folder / "model_index.json").read_text()).get("_class_name")
    if name == "StableDiffusionXLPipeline":
        return SdxlGenerator.load(folder, spec, kind="sdxl", device=device)
    if name == "StableDiffusionPipeline":
        return OneStepGenerator.load(folder, spec, kind="tiny" if located in KNOWN else "sd", device=device)
    raise InvalidInput(
        f"{spec.model} is a {name}: StableDiffusionPipeline and StableDiffusionXLPipeline can be trained", field="model"
    )
