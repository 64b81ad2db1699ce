"""Generators: `build_generator` loads the pipeline that a job's `model` names, as the class that its model_index.json
names.
"""

from __future__ import annotations

from pathlib import Path

from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.generators.sdxl import SdxlGenerator
from dipole_trainer.spec import GeneratorSpec
from dipole_trainer.weights import pipelines


def build_generator(
    spec: GeneratorSpec, *, models_dir: Path, device: str = "cpu", initial: Path | None = None
) -> OneStepGenerator:
    """Load a generator; `initial` has the weights that `spec.initial_checkpoint` names.

    Raises InvalidInput where it is not on this machine, or is no pipeline of ours.
    """
    folder, kind = pipelines.find_pipeline(spec, models_dir)
    made = SdxlGenerator if kind == "sdxl" else OneStepGenerator
    return made.load(folder, spec, kind=kind, device=device, initial=initial)
