"""CLIP's image tower on decoded pixels, from a whole CLIP checkpoint or from its image half."""

from __future__ import annotations

from pathlib import Path

from transformers import CLIPVisionModel

from dipole_trainer.features.vision_models import VisionFeatures, load_pretrained
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.spec import FeaturesSpec
from dipole_trainer.weights.feature_weights import CLIP_WEIGHTS


def load_clip_features(spec: FeaturesSpec, generator: OneStepGenerator, models_dir: Path) -> VisionFeatures:
    kinds = ["clip", "clip_vision_model"]
    model, prepare = load_pretrained(CLIPVisionModel, CLIP_WEIGHTS, spec, generator, models_dir, kinds=kinds)
    return VisionFeatures(model, model, prepare, generator.decode_pixels, spec.keys, space="clip")
