"""The tiny world's feature space that saw no label: one vector a quadrant, learnt from pictures alone.

The encoder was trained to know a quadrant of a picture again after it was moved, zoomed, disturbed and mixed among
quadrants of other pictures (scripts/train-tiny, stage `contrastive`). No label, caption, prompt or reward was in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from torch.nn import functional

from dipole.errors import InvalidInput
from dipole_trainer.features.keys import choose_keys
from dipole_trainer.features.latent_mae import LatentResNet, build_from_tensors
from dipole_trainer.generators.one_step import TINY_TURBO, OneStepGenerator
from dipole_trainer.generators.weight_files import read_weight_file
from dipole_trainer.spec import FeaturesSpec
from dipole_trainer.weights import local_weights
from dipole_trainer.weights.feature_weights import TINY_CONTRASTIVE_FILE

KEYS = ("mean", "layout")
LAST_MAP = "layer3"


def make_encoder() -> LatentResNet:
    """Latents (K, 4, 8, 8) to a map `layer3` (K, 96, 2, 2): a cell a quadrant; 282,560 numbers."""
    return LatentResNet(4, 32, (64, 64, 96), (1, 1, 1))


def encode_quadrants(encoder: LatentResNet, x: Tensor) -> Tensor:
    """Latents (K, 4, h, w) to one vector for each 4×4 of them, row by row: (K, h·w/16, 96)."""
    grid: Tensor = encoder(x, [LAST_MAP])[LAST_MAP]
    return grid.flatten(2).transpose(1, 2)


class TinyContrastiveFeatures:
    """Keys of unit vectors, one vector a sample each: `mean` of the quadrants', `layout` all in their places."""

    def __init__(self, encoder: LatentResNet, wanted: Sequence[str] = ()) -> None:
        self.encoder = encoder.eval().requires_grad_(False)
        self.keys = choose_keys(wanted, KEYS, KEYS, space="tiny_contrastive")

    def __call__(self, x: Tensor, *, prompt: str, seeds: Sequence[int]) -> dict[str, Tensor]:
        if x.shape[1] != self.encoder.channels:
            raise InvalidInput(
                f"features.type: tiny_contrastive reads latents of {self.encoder.channels} channels, and the model's "
                f"have {x.shape[1]}: choose another feature space",
                field="features.type",
            )
        vectors = functional.normalize(encode_quadrants(self.encoder, x), dim=-1)
        found = {"mean": vectors.mean(1, keepdim=True), "layout": vectors.flatten(1)[:, None]}
        return {key: found[key] for key in self.keys}


def load_tiny_contrastive(spec: FeaturesSpec, generator: OneStepGenerator, models_dir: Path) -> TinyContrastiveFeatures:
    """The encoder in the package, or another of its kind where the job names its weights."""
    path = TINY_TURBO / "encoders" / TINY_CONTRASTIVE_FILE
    if spec.weights is not None:
        found = local_weights.locate_weights(
            spec.weights, models_dir, revision=spec.revision, field="features.weights", files=[TINY_CONTRASTIVE_FILE]
        )
        path = local_weights.matching_files(found, TINY_CONTRASTIVE_FILE)[0]
    encoder = build_from_tensors(read_weight_file(path, field="features.weights"))
    return TinyContrastiveFeatures(encoder.to(generator.device), spec.keys)
