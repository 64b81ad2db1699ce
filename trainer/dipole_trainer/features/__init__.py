"""Feature spaces φ, in which samples drift: latents in, several named sets of vectors (keys) out.

One space a file, each with `load(spec, generator, models_dir)`; `pooling.py` and `keys.py` are shared by all,
`preprocessing.py` and `vision_models.py` by those that read images. Keys and pooling are the published ones (METHOD:
published settings); `features.keys` chooses others.

Legend: K samples, T tokens, D features, c latent channels, h, w latent size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from dipole_trainer.compute.micro_batches import MicroBatches
from dipole_trainer.features import clip, dinov2, latent_mae, latents, teacher_unet, tiny, vit_mae
from dipole_trainer.features.preprocessing import PROCESSOR_FILE
from dipole_trainer.features.vision_models import SAFETENSORS_PATTERN
from dipole_trainer.generators.one_step import OneStepGenerator, PipelineKind
from dipole_trainer.spec import FeaturesSpec
from dipole_trainer.weights import local_weights


class FeatureExtractor(Protocol):
    def __call__(self, x: Tensor, *, prompt: str, seeds: Sequence[int]) -> dict[str, Tensor]:
        """Keys of latents x (K, c, h, w), float32 in the U-Net's units: {key: (K, T, D)}.

        Differentiable in x, frozen in its weights and deterministic: row k depends on x[k], the prompt and seeds[k]
        alone, so that chunks of any size agree.
        """


LoadFeatures = Callable[[FeaturesSpec, OneStepGenerator, Path], FeatureExtractor]

# what `auto` is, by the generator's kind
PUBLISHED_SPACES = {"tiny": "tiny", "sd": "latent_mae", "sdxl": "vit_mae"}
SPACES: dict[str, LoadFeatures] = {
    "tiny": tiny.load_tiny_features,
    "latents": latents.load_latent_features,
    "latent_mae": latent_mae.load_latent_mae,
    "vit_mae": vit_mae.load_vit_mae_features,
    "dinov2": dinov2.load_dinov2_features,
    "clip": clip.load_clip_features,
    "teacher_unet": teacher_unet.load_teacher_unet,
}
_VISION_FILES = ("config.json", PROCESSOR_FILE)
# of the spaces that load any: the published weights, and their files
SPACE_WEIGHTS: dict[str, tuple[str, Sequence[str]]] = {
    "latent_mae": (latent_mae.LATENT_MAE_WEIGHTS, (latent_mae.LATENT_MAE_FILES,)),
    "vit_mae": (vit_mae.VIT_MAE_WEIGHTS, (*_VISION_FILES, f"{SAFETENSORS_PATTERN}|pytorch_model.bin")),
    "dinov2": (dinov2.DINOV2_WEIGHTS, (*_VISION_FILES, SAFETENSORS_PATTERN)),
    "clip": (clip.CLIP_WEIGHTS, (*_VISION_FILES, SAFETENSORS_PATTERN)),
}


def locate_weights(spec: FeaturesSpec, kind: PipelineKind, *, models_dir: Path) -> None:
    """Raise InvalidInput where the weights that `build_features` will load are not on this machine, or not whole.

    Cheap, and in need of no generator: to be asked before one is loaded.
    """
    space = resolve_space(spec, kind)
    if space in SPACE_WEIGHTS:
        published, files = SPACE_WEIGHTS[space]
        local_weights.locate_weights(
            spec.weights or published, models_dir, revision=spec.revision, field="features.weights", files=files
        )


def build_features(spec: FeaturesSpec, generator: OneStepGenerator, *, models_dir: Path) -> FeatureExtractor:
    """The feature space of a job, on the generator's device.

    Raises InvalidInput where its weights are not on this machine or a key is not one of its.
    """
    return SPACES[resolve_space(spec, generator.kind)](spec, generator, models_dir)


@torch.no_grad()
def check_features_fit(features: FeatureExtractor, generator: OneStepGenerator) -> None:
    """Raise InvalidInput where a key does not fit the size of the generator's latents: runs φ once on noise."""
    features(generator.draw_noise([0]), prompt="a photograph", seeds=[0])


def extract_features(
    features: FeatureExtractor, x: Tensor, micro_batches: MicroBatches, *, prompt: str, seeds: Sequence[int]
) -> dict[str, Tensor]:
    """Keys of latents x (K, c, h, w), of as many samples at once as `micro_batches` says."""
    parts = micro_batches.map(
        range(len(x)), lambda rows: features(x[rows], prompt=prompt, seeds=[seeds[row] for row in rows])
    )
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def resolve_space(spec: FeaturesSpec, kind: PipelineKind) -> str:
    """The space's name, where `auto` is the published one of the generator's kind."""
    return PUBLISHED_SPACES[kind] if spec.type == "auto" else spec.type
