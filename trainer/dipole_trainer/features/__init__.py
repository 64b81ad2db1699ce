"""Feature spaces φ, in which samples drift: latents in, several named sets of vectors (keys) out.

One space a file, each with `load(spec, generator, models_dir)`; `pooling.py` and `keys.py` are shared by all,
`preprocessing.py` and `vision_models.py` by those that read images. Keys and pooling are the published ones (METHOD:
published settings); `features.keys` chooses others.

Legend: K samples, T tokens, D features, c latent channels, h, w latent size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from dipole_trainer.compute.micro_batches import MicroBatches
from dipole_trainer.compute.transfers import take_rows
from dipole_trainer.features import (
    clip,
    dinov2,
    latent_mae,
    latents,
    teacher_unet,
    tiny_contrastive,
    tiny_labelled,
    vit_mae,
)
from dipole_trainer.generators.one_step import OneStepGenerator
from dipole_trainer.spec import FeaturesSpec, MethodSettings
from dipole_trainer.weights import feature_weights


class FeatureExtractor(Protocol):
    """A space that reads images has `encode_pixels` too, of decoded ones (K, 3, H, W) from 0 to 1."""

    def __call__(self, x: Tensor, *, prompt: str, seeds: Sequence[int]) -> dict[str, Tensor]:
        """Keys of latents x (K, c, h, w), float32 in the denoiser's units: {key: (K, T, D)}.

        Differentiable in x, frozen in its weights and deterministic: row k depends on x[k], the prompt and seeds[k]
        alone, so that chunks of any size agree.
        """


LoadFeatures = Callable[[FeaturesSpec, OneStepGenerator, Path], FeatureExtractor]

SPACES: dict[str, LoadFeatures] = {
    "tiny_contrastive": tiny_contrastive.load_tiny_contrastive,
    "tiny_labelled": tiny_labelled.load_tiny_labelled,
    "latents": latents.load_latent_features,
    "latent_mae": latent_mae.load_latent_mae,
    "vit_mae": vit_mae.load_vit_mae_features,
    "dinov2": dinov2.load_dinov2_features,
    "clip": clip.load_clip_features,
    "teacher_unet": teacher_unet.load_teacher_unet,
}


def build_features(spec: FeaturesSpec, generator: OneStepGenerator, *, models_dir: Path) -> FeatureExtractor:
    """The feature space of a job, on the generator's device.

    Raises InvalidInput where it does not fit the generator, its weights are not on this machine or a key is not one of
    its.
    """
    space = feature_weights.resolve_space(spec, generator.kind)
    feature_weights.check_space_fits(space, generator.kind)
    return SPACES[space](spec, generator, models_dir)


def reads_pixels(features: FeatureExtractor, settings: MethodSettings) -> bool:
    """Whether a method looks at features of decoded images, so that what is drawn is decoded here anyway."""
    return settings.uses_features() and hasattr(features, "encode_pixels")


@torch.no_grad()
def check_features_fit(features: FeatureExtractor, generator: OneStepGenerator) -> None:
    """Raise InvalidInput where a key does not fit the size of the generator's latents: runs φ once on noise."""
    features(generator.draw_noise([0]), prompt="a photograph", seeds=[0])


def extract_features(
    features: FeatureExtractor, x: Tensor, micro_batches: MicroBatches, *, prompt: str, seeds: Sequence[int]
) -> dict[str, Tensor]:
    """Keys of latents x (K, c, h, w), of as many samples at once as `micro_batches` says."""
    parts = micro_batches.map(
        range(len(x)), lambda rows: features(take_rows(x, rows), prompt=prompt, seeds=[seeds[row] for row in rows])
    )
    return join_features(parts)


def join_features(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Micro-batches of features as one."""
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
