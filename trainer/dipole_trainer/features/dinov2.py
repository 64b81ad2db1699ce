"""DINOv2 on decoded pixels."""

from __future__ import annotations

from pathlib import Path

from transformers import Dinov2Model

from dipole_trainer.features.vision_models import VisionFeatures, pretrained
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.spec import FeaturesSpec

WEIGHTS = "facebook/dinov2-base"


def load(spec: FeaturesSpec, generator: OneStepGenerator, models_dir: Path) -> VisionFeatures:
    model, prepare = pretrained(Dinov2Model, WEIGHTS, spec, generator, models_dir, kinds=["dinov2"])
    return VisionFeatures(model, model, prepare, generator.pixels, spec.keys, space="dinov2")
