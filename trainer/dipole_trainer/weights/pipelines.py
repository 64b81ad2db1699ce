"""Which pipeline a job's `model` is and where, by its model_index.json: known before anything of it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dipole.errors import InvalidInput
from dipole_trainer.spec import GeneratorSpec
from dipole_trainer.weights import base_models
from dipole_trainer.weights.distillations import Distillation, find_distillation

PipelineKind = Literal["tiny", "sd", "sdxl", "sana"]

PIPELINE_KINDS: dict[str, PipelineKind] = {
    "StableDiffusionPipeline": "sd",
    "StableDiffusionXLPipeline": "sdxl",
    "SanaSprintPipeline": "sana",
}
TRAINED_PARTS: dict[PipelineKind, str] = {"tiny": "unet", "sd": "unet", "sdxl": "unet", "sana": "transformer"}
REQUIRED_PARTS = ("vae", "text_encoder", "tokenizer", "scheduler")


@dataclass(frozen=True)
class FoundPipeline:
    """`distillation` is what lies in its folder to make it draw in one step, where the pipeline does not by itself."""

    folder: Path
    kind: PipelineKind
    distillation: Distillation | None = None


def find_pipeline(spec: GeneratorSpec, models_dir: Path) -> FoundPipeline:
    """The pipeline's folder and what it is. Raises InvalidInput where it is not on this machine, or none of ours."""
    located = base_models.locate_pipeline(spec.model, models_dir, spec.revision)
    if located in base_models.BUILT_IN_MODELS:
        return FoundPipeline(base_models.BUILT_IN_FOLDER, "tiny")
    index = base_models.read_pipeline_index(Path(located))
    name = index.get("_class_name")
    if name is None:
        raise InvalidInput(
            f"model: {located}/{base_models.INDEX_FILE} names no _class_name: {' or '.join(PIPELINE_KINDS)} is wanted",
            field="model",
        )
    if not isinstance(name, str) or name not in PIPELINE_KINDS:
        raise InvalidInput(f"{spec.model} is a {name}: {' and '.join(PIPELINE_KINDS)} can be trained", field="model")
    kind, parts = PIPELINE_KINDS[name], base_models.named_parts(index)
    if absent := [part for part in (TRAINED_PARTS[kind], *REQUIRED_PARTS) if part not in parts]:
        raise InvalidInput(
            f"model: {located}/{base_models.INDEX_FILE} names no {', '.join(absent)}, which {name} consists of",
            field="model",
        )
    return FoundPipeline(Path(located), kind, find_distillation(Path(located)))
