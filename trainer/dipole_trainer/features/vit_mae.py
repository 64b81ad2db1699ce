"""ViT-MAE's encoder on decoded pixels, with nothing masked.

The published loop leaves the model's own masking on: it sees a random quarter of the patches, another one each call.
Here it sees every patch in its place, because features must be the same whenever they are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import ViTMAEModel

from dipole_trainer.features.preprocessing import ImagePreprocessor
from dipole_trainer.features.vision_models import VisionFeatures, load_pretrained
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.spec import FeaturesSpec
from dipole_trainer.weights.feature_weights import SAFETENSORS_PATTERN, VIT_MAE_WEIGHTS


def load_vit_mae_features(spec: FeaturesSpec, generator: OneStepGenerator, models_dir: Path) -> VisionFeatures:
    model, prepare = load_pretrained(
        ViTMAEModel,
        VIT_MAE_WEIGHTS,
        spec,
        generator,
        models_dir,
        kinds=["vit_mae"],
        files=f"{SAFETENSORS_PATTERN}|pytorch_model.bin",
    )
    return make_vit_mae_features(model, prepare, generator, spec.keys)


def make_vit_mae_features(
    model: Any, prepare: ImagePreprocessor, generator: OneStepGenerator, keys: Sequence[str]
) -> VisionFeatures:
    """Of a loaded ViTMAEModel on the generator's device."""
    model.config.mask_ratio = 0.0
    order = torch.arange(model.embeddings.patch_embeddings.num_patches, device=generator.device).float()

    def run_model(images: Tensor) -> object:
        # patches are sorted by it: each stays in its place
        return model(images, noise=order.expand(len(images), -1))

    return VisionFeatures(model, run_model, prepare, generator.decode_pixels, keys, space="vit_mae")
