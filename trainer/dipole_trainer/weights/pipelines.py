"""Which pipeline a job's `model` is and where, by its model_index.json: known before anything of it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from dipole.errors import InvalidInput
from dipole_trainer.spec import GeneratorSpec
from dipole_trainer.weights import base_models

PipelineKind = Literal["tiny", "sd", "sdxl"]

PIPELINE_KINDS: dict[str, PipelineKind] = {"StableDiffusionPipeline": "sd", "StableDiffusionXLPipeline": "sdxl"}
REQUIRED_PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


def find_pipeline(spec: GeneratorSpec, models_dir: Path) -> tuple[Path, PipelineKind]:
    """The pipeline's folder, and its kind. Raises InvalidInput where it is not on this machine, or none of ours."""
    located = base_models.locate_pipeline(spec.model, models_dir, spec.revision)
    if located in base_models.BUILT_IN_MODELS:
        return base_models.BUILT_IN_FOLDER, "tiny"
    index = base_models.read_pipeline_index(Path(located))
    name = index.get("_class_name")
    if name is None:
        raise InvalidInput(
            f"model: {located}/{base_models.INDEX_FILE} names no _class_name: {' or '.join(PIPELINE_KINDS)} is wanted",
            field="model",
        )
    if not isinstance(name, str) or name not in PIPELINE_KINDS:
        raise InvalidInput(f"{spec.model} is a {name}: {' and '.join(PIPELINE_KINDS)} can be trained", field="model")
    if absent := [part for part in REQUIRED_PARTS if part not in base_models.named_parts(index)]:
        raise InvalidInput(
            f"model: {located}/{base_models.INDEX_FILE} names no {', '.join(absent)}, which {name} consists of",
            field="model",
        )
    return Path(located), PIPELINE_KINDS[name]
