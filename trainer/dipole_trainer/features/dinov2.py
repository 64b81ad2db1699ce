"""DINOv2 on decoded pixels."""

from __future__ import annotations

from pathlib import Path

from transformers import Dinov2Model

from dipole_trainer.features.vision_models import VisionFeatures, load_pretrained
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.spec import FeaturesSpec
from dipole_trainer.weights.feature_weights import DINOV2_WEIGHTS


def load_dinov2_features(spec: FeaturesSpec, generator: OneStepGenerator, models_dir: Path) -> VisionFeatures:
    model, prepare = load_pretrained(Dinov2Model, DINOV2_WEIGHTS, spec, generator, models_dir, kinds=["dinov2"])
    return VisionFeatures(model, model, prepare, generator.decode_pixels, spec.keys, space="dinov2")
