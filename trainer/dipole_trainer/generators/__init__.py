"""Generators: `build_generator` loads the pipeline that a job's `model` names, as the class that its model_index.json
names.
"""

from __future__ import annotations

from pathlib import Path

from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.generators.sana import SanaSprintGenerator
from dipole_trainer.generators.sdxl import SdxlGenerator
from dipole_trainer.spec import GeneratorSpec
from dipole_trainer.weights import pipelines
from dipole_trainer.weights.pipelines import PipelineKind

GENERATORS: dict[PipelineKind, type[OneStepGenerator]] = {
    "tiny": OneStepGenerator,
    "sd": OneStepGenerator,
    "sdxl": SdxlGenerator,
    "sana": SanaSprintGenerator,
}


def build_generator(
    spec: GeneratorSpec, *, models_dir: Path, device: str = "cpu", initial: Path | None = None
) -> OneStepGenerator:
    """Load a generator; `initial` has the weights that `spec.initial_checkpoint` names.

    Raises InvalidInput where it is not on this machine, or is no pipeline of ours.
    """
    found = pipelines.find_pipeline(spec, models_dir)
    return GENERATORS[found.kind].load(
        found.folder, spec, kind=found.kind, device=device, initial=initial, distillation=found.distillation
    )
