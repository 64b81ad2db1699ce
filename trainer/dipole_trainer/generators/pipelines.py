"""Which pipeline a job's `model` is and where, by its model_index.json: known before anything of it is loaded."""

from __future__ import annotations

import json
from pathlib import Path

from dipole.errors import InvalidInput
from dipole_trainer.generators.one_step import TINY_TURBO, Kind
from dipole_trainer.spec import TrainSpec
from dipole_trainer.weights import base_models

KINDS: dict[str, Kind] = {"StableDiffusionPipeline": "sd", "StableDiffusionXLPipeline": "sdxl"}


def find(spec: TrainSpec, models_dir: Path) -> tuple[Path, Kind]:
    """The pipeline's folder, and its kind. Raises InvalidInput where it is not on this machine, or none of ours."""
    located = base_models.locate(spec.model, models_dir, spec.revision)
    if located in base_models.BUILT_IN:
        return TINY_TURBO, "tiny"
    name = json.loads((Path(located) / "model_index.json").read_text()).get("_class_name")
    if name not in KINDS:
        raise InvalidInput(f"{spec.model} is a {name}: {' and '.join(KINDS)} can be trained", field="model")
    return Path(located), KINDS[name]
